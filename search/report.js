"use strict";
// Draws the plots when they come into view and makes the table sortable. Without this script, or
// where a browser cannot unpack plotly, the still drawings and the plain table stay.
(() => {
  let data = { plots: {}, trials: {} };
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

  // Else a slow machine shows nothing until every plot in view is drawn.
  const pause = () => new Promise((resolve) => {
    if (document.hidden) setTimeout(resolve);
    else requestAnimationFrame(() => setTimeout(resolve));
  });

  const canUnpack = () => Boolean(window.DecompressionStream && window.IntersectionObserver);

  const start = async (library) => {
    const script = document.createElement("script");
    script.textContent = await library;
    document.head.append(script);
    document.getElementById("plotly").remove();
    let queue = Promise.resolve();
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((e) => e.isIntersecting)) {
        watcher.unobserve(entry.target);
        const box = entry.target.querySelector(".live");
        queue = queue.then(() => draw(box)).catch((e) => console.error(box.dataset.plot, e)).then(pause);
      }
    }, { rootMargin: "400px" });
    for (const box of document.querySelectorAll(".live")) {
      if (data.plots[box.dataset.plot]) watcher.observe(box.closest("figure"));
    }
    dark.addEventListener("change", () => drawn.forEach((box) => draw(box)));
    document.documentElement.dataset.ready = "1";
  };

  const begin = async () => {
    const packed = document.getElementById("plotly");
    const library = packed && canUnpack() ? unpack(packed.textContent) : null;
    const held = document.getElementById("data");
    if (held.type === "application/json") data = JSON.parse(held.textContent);
    else if (canUnpack()) data = JSON.parse(await unpack(held.textContent));
    const table = document.getElementById("trials");
    if (table) interactive(table);
    if (library) await start(library);
  };

  // As the rest of the page writes them: ties go to the even digit.
  const fixed = (value) => {
    const text = value.toFixed(2);
    const isTie = Number.isInteger(value * 8) && (value * 8) % 2 !== 0;
    return isTie && Number(text.at(-1)) % 2 ? (value - Math.sign(value) * 0.001).toFixed(2) : text;
  };

  const digits = (value) => {
    if (value === 0) return "0";
    let [start, power] = value.toExponential(3).split("e");
    const isTie = /^-?\d\.\d{3}50*e/.test(value.toExponential(60));
    if (isTie && Number(start.at(-1)) % 2) {
      [start, power] = (value * (1 - 1e-6)).toExponential(3).split("e");
    }
    const bare = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    if (power >= -4 && power < 4) return bare(Number(`${start}e${power}`).toFixed(3 - power));
    return `${bare(start)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  };

  const looks = {
    rank: String, plain: String, name: (value) => String(value).padStart(5, "0"),
    percent: fixed, digits,
  };

  const typed = (text) => {
    if (text === "–") return null;
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };

  const coded = (column, place) => {
    const found = column.at ? column.values[column.at[place]] : column.values[place];
    return found ?? null;
  };

  // A row that lies in the page.
  const givenRow = (row) => ({
    id: row.id, state: row.dataset.state, isFront: row.classList.contains("front"),
    key: (column) => typed(row.cells[column].dataset.v ?? row.cells[column].textContent),
    text: () => row.textContent,
    element: () => row,
  });

  // Rows that are built when they are shown.
  const builtRows = ({ fates, front, columns }) => {
    const isFront = new Set(front);
    const value = (column, place) => {
      if (column.look === "rank") return place < column.values ? place + 1 : null;
      return coded(column, place);
    };
    const told = (column, place) => {
      const own = column.look === "told" ? coded(column.texts, place) : value(column, place);
      if (own === null) return "–";
      return column.look === "told" || typeof own === "string" ? own : looks[column.look](own);
    };
    const count = (columns[1].at ?? columns[1].values).length;
    return Array.from({ length: count }, (_, place) => {
      const row = {
        id: `t${told(columns[1], place)}`, state: coded(fates, place), isFront: isFront.has(place),
        key: (column) => {
          const own = value(columns[column], place);
          return typeof own === "string" ? typed(own) : own;
        },
        text: () => {
          row.words ??= columns.map((column) => told(column, place)).join(" ");
          return row.words;
        },
        element: () => {
          const line = document.createElement("tr");
          line.id = row.id;
          line.dataset.state = row.state;
          line.classList.toggle("front", row.isFront);
          columns.forEach((column, index) => {
            const cell = line.insertCell();
            cell.textContent = told(column, place);
            if (index === 2) cell.className = `text ${row.state}`;
            const own = value(column, place);
            if (typeof own === "number" && String(own) !== cell.textContent) cell.dataset.v = own;
          });
          return line;
        },
      };
      return row;
    });
  };

  const interactive = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const rows = data.table ? builtRows(data.table) : [...body.rows].map(givenRow);
    const pageRows = data.table ? 200 : rows.length;
    const form = document.getElementById("filter");
    const words = document.getElementById("words");
    const state = document.getElementById("state");
    const bestOnly = document.getElementById("best-only");
    const pager = data.table ? document.getElementById("pager") : null;
    let order = rows; // as sorted
    let found = rows; // of them, those that the filter leaves
    let first = 0; // of them, the first one shown

    const display = () => {
      const shown = found.slice(first, first + pageRows);
      body.replaceChildren(...shown.map((row) => row.element()));
      if (!pager) return;
      const [before, after] = pager.querySelectorAll("button");
      pager.hidden = found.length <= pageRows;
      before.disabled = first === 0;
      after.disabled = first + pageRows >= found.length;
      pager.querySelector("span").textContent =
        `rows ${first + 1} to ${first + shown.length} of ${found.length}`;
    };

    const compare = (a, b) => {
      if (typeof a === "number" && typeof b === "number") return a - b;
      return String(a).localeCompare(String(b), undefined, { numeric: true });
    };

    const sort = (column) => {
      const up = heads[column].getAttribute("aria-sort") !== "ascending";
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = rows.map((row, place) => ({ row, place, key: row.key(column) }));
      keyed.sort((a, b) => {
        if (a.key === null || b.key === null) {
          return (a.key === null) - (b.key === null) || a.place - b.place;
        }
        return (up ? 1 : -1) * compare(a.key, b.key) || a.place - b.place;
      });
      order = keyed.map((entry) => entry.row);
      filter();
    };

    const tests = {
      "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
      "=": (a, b) => a === b,
    };

    // `width=64 accuracy>90 sdt`: comparisons by a part of a column's name, other words as they are.
    const matches = (row, word) => {
      const found = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(word);
      if (!found) return row.text().toLowerCase().includes(word);
      const [, name, sign, text] = found;
      const wanted = Number.isFinite(Number(text)) ? Number(text) : text;
      return heads.some((head, column) => {
        if (!head.textContent.toLowerCase().includes(name)) return false;
        const own = row.key(column);
        if (own === null) return false;
        if (typeof wanted === "number") return typeof own === "number" && tests[sign](own, wanted);
        return sign === "=" && String(own).toLowerCase() === wanted;
      });
    };

    const filter = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = order.filter((row) => (state.value === "" || row.state === state.value)
        && (!bestOnly.checked || row.isFront)
        && wanted.every((word) => matches(row, word)));
      first = 0;
      display();
      document.getElementById("shown").value = `${found.length} of ${rows.length} trials`;
    };

    show = (id) => {
      if (!rows.some((row) => row.id === id)) return;
      if (!found.some((row) => row.id === id)) {
        form.reset();
        filter();
      }
      const place = found.findIndex((row) => row.id === id);
      if (place < first || place >= first + pageRows) {
        first = place - (place % pageRows);
        display();
      }
      if (location.hash === `#${id}`) document.getElementById(id).scrollIntoView();
      else location.hash = id;
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
      if (!link || !/^#t\d+$/.test(link.getAttribute("href"))) return;
      event.preventDefault(); // its row may not lie in the page yet
      show(link.getAttribute("href").slice(1));
    });
    if (data.table) document.getElementById("first-rows").remove();
    pager?.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      first += button === pager.firstElementChild ? -pageRows : pageRows;
      display();
      table.scrollIntoView();
    });
    filter();
    if (/^#t\d+$/.test(location.hash)) show(location.hash.slice(1));
  };

  begin().catch((error) => console.error(error));
})();
