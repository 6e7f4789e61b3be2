"use strict";
// Draws the plots when they come into view and makes the table sortable. Without this script, or
// where a browser cannot unpack plotly, the still drawings and the plain table stay.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const drawn = new Set();
  let show = () => {}; // leads to a trial's row, where there is a table of trials

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Plotly does not know CSS variables.
  const coloured = (value) => {
    if (typeof value === "string") {
      const found = /^var\((--[a-z]+)\)$/.exec(value);
      return found ? css(found[1]) : value;
    }
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    }
    return value;
  };

  const template = () => {
    const axis = {
      gridcolor: css("--grid"), linecolor: css("--grid"), zerolinecolor: css("--grid"),
      title: { standoff: 8 }, hoverformat: ".6~g",
    };
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12 };
    return {
      layout: {
        font: { ...font, color: css("--quiet") },
        paper_bgcolor: css("--panel"), plot_bgcolor: css("--panel"),
        hoverlabel: {
          bgcolor: css("--page"), bordercolor: css("--grid"), align: "left",
          font: { ...font, color: css("--ink") },
        },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--quiet"), activecolor: css("--ink") },
        xaxis: axis, yaxis: axis,
      },
    };
  };

  const wording = (trace) => {
    const told = (trace.hovertemplate || "").includes("%{hovertext}");
    if (!told) return trace;
    return { ...trace, hovertext: trace.customdata.map((n) => data.trials[n] || "") };
  };

  const draw = (box) => {
    const figure = data.plots[box.dataset.plot];
    if (figure.minWidth) box.style.minWidth = `${figure.minWidth}px`;
    const layout = { ...coloured(figure.layout), template: template(), autosize: true };
    if (coarse.matches) layout.dragmode = false; // a finger scrolls the page
    const config = {
      responsive: true, displaylogo: false,
      displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
      showSendToCloud: false, plotlyServerURL: "", // nothing leaves this page
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { filename: box.dataset.plot, scale: 2 },
    };
    const first = !drawn.has(box);
    drawn.add(box);
    return window.Plotly.react(box, coloured(figure.data.map(wording)), layout, config).then(() => {
      if (!first) return;
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", box.dataset.title);
      box.closest("figure").classList.add("drawn");
      box.on("plotly_click", (event) => {
        const number = event.points[0].customdata;
        if (Number.isInteger(number)) show(`t${String(number).padStart(5, "0")}`);
      });
    });
  };

  const decoded = (text) => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i += 1) bytes[i] = letters.charCodeAt(i);
    return bytes;
  };

  const unpack = async (text) => {
    const bytes = decoded(text);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const start = async () => {
    const packed = document.getElementById("plotly");
    if (!packed || !window.DecompressionStream || !window.IntersectionObserver) return;
    const script = document.createElement("script");
    script.textContent = await unpack(packed.textContent);
    document.head.append(script);
    packed.remove();
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((e) => e.isIntersecting)) {
        watcher.unobserve(entry.target);
        const box = entry.target.querySelector(".live");
        draw(box).catch((error) => console.error(box.dataset.plot, error));
      }
    }, { rootMargin: "400px" });
    for (const box of document.querySelectorAll(".live")) {
      if (data.plots[box.dataset.plot]) watcher.observe(box.closest("figure"));
    }
    dark.addEventListener("change", () => drawn.forEach((box) => draw(box)));
    document.documentElement.dataset.ready = "1";
  };

  const interactive = () => {
    const table = document.getElementById("trials");
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...body.rows];
    const form = document.getElementById("filter");
    const words = document.getElementById("words");
    const state = document.getElementById("state");
    const bestOnly = document.getElementById("best-only");

    const value = (row, column) => {
      const cell = row.cells[column];
      const text = cell.dataset.v ?? cell.textContent;
      return text === "–" ? null : text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
    };

    const compare = (a, b) => {
      if (typeof a === "number" && typeof b === "number") return a - b;
      return String(a).localeCompare(String(b), undefined, { numeric: true });
    };

    const sort = (column) => {
      const up = heads[column].getAttribute("aria-sort") !== "ascending";
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = rows.map((row, place) => ({ row, place, key: value(row, column) }));
      keyed.sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
        return (up ? 1 : -1) * compare(a.key, b.key) || a.place - b.place;
      });
      body.append(...keyed.map((entry) => entry.row));
    };

    const tests = {
      "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
      "=": (a, b) => a === b,
    };

    // `width=64 accuracy>90 sdt`: comparisons by a part of a column's name, other words as they are.
    const matches = (row, word) => {
      const found = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(word);
      if (!found) return row.textContent.toLowerCase().includes(word);
      const [, name, sign, text] = found;
      const wanted = Number.isFinite(Number(text)) ? Number(text) : text;
      return heads.some((head, column) => {
        if (!head.textContent.toLowerCase().includes(name)) return false;
        const own = value(row, column);
        if (own === null) return false;
        if (typeof wanted === "number") return typeof own === "number" && tests[sign](own, wanted);
        return sign === "=" && String(own).toLowerCase() === wanted;
      });
    };

    const filter = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        row.hidden = (state.value !== "" && row.dataset.state !== state.value)
          || (bestOnly.checked && !row.classList.contains("front"))
          || !wanted.every((word) => matches(row, word));
        count += row.hidden ? 0 : 1;
      }
      document.getElementById("shown").value = `${count} of ${rows.length} trials`;
    };

    show = (id) => {
      const row = document.getElementById(id);
      if (!row) return;
      if (row.hidden) {
        form.reset();
        filter();
      }
      location.hash = id;
    };

    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sort(column));
      head.replaceChildren(button);
    });
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[href]");
      if (link && /^#t\d+$/.test(link.getAttribute("href"))) show(link.getAttribute("href").slice(1));
    });
    filter();
  };

  if (document.getElementById("trials")) interactive();
  start().catch((error) => console.error(error));
})();
