"""How MLflow's pages are clicked through."""

from chromium import Page


def component(name: str) -> str:
    """What MLflow's pages call a button: they have no other stable names."""
    return f'[data-component-id$="{name}"]'


async def click(page: Page, selector: str) -> None:
    await page.until(f"!!document.querySelector('{selector}')")
    await page.click(selector)


async def click_text(page: Page, text: str) -> None:
    """Click on the innermost element that says just this."""
    found = (
        "[...document.querySelectorAll('button, a, span, div')]"
        f".filter(e => e.innerText?.trim() === '{text}' && e.offsetParent).at(-1)"
    )
    await page.until(f"!!{found}")
    await page.value(f"{found}.setAttribute('data-found', '{text}')")
    await page.click(f'[data-found="{text}"]')


async def open_page(page: Page, address: str) -> None:
    await page.open(address, 1600, 1000)
    await click(page, component("assistant.chat_panel.close"))
