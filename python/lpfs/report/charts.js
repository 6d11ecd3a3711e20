(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const near = (list, distance) => list.reduce((a, b) => distance(b) < distance(a) ? b : a);
  const numbers = text => text.split(",").map(Number);
  const text = (value, range, log) => {
    if (log) return (10 ** value).toExponential(1);
    const digits = Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(range))));
    const least = digits >= 4 ? 4 : 0;
    return value.toLocaleString("en", { minimumFractionDigits: least, maximumFractionDigits: Math.max(least, digits) }).replace("-", "−");
  };
  const put = (tip, svg, left, above) => {
    tip.style.display = "block";
    const box = svg.getBoundingClientRect(), room = document.documentElement.clientWidth - box.left - 4;
    const right = left + 14 + tip.offsetWidth;
    tip.style.left = Math.max(4 - box.left, right > room ? Math.min(left - 14, room) - tip.offsetWidth : left + 14) + "px";
    tip.style.top = Math.max(-20, above - tip.offsetHeight / 2) + "px";
  };

  for (const part of all(".part")) {
    const groups = all("svg.several g", part);
    const pick = name => {
      for (const svg of all("svg.several", part)) svg.classList.toggle("picked", name !== null);
      for (const g of groups) g.classList.toggle("on", g.dataset.name === name);
    };
    for (const chip of all(".chips button", part)) {
      const name = chip.textContent;
      chip.addEventListener("pointerenter", () => pick(name));
      chip.addEventListener("pointerleave", () => pick(null));
      chip.addEventListener("click", () => {
        const shown = chip.getAttribute("aria-pressed") !== "true";
        for (const same of all(".chips button", part)) if (same.textContent === name) same.setAttribute("aria-pressed", shown);
        for (const g of groups) if (g.dataset.name === name) g.classList.toggle("hidden", !shown);
        pick(null);
      });
    }
    for (const chart of all(".chart[data-x]", part)) {
      const svg = chart.querySelector("svg"), tip = chart.querySelector(".tip");
      const [left, right] = numbers(chart.dataset.x), [bottom, top] = numbers(chart.dataset.y);
      const log = "log" in chart.dataset;
      const places = chart.dataset.places ? chart.dataset.places.split("|").map(place => {
        const [x, name] = place.split(/:(.*)/);
        return [Number(x), name];
      }) : null;
      const lines = all("g", svg).map(g => ({
        g, errors: g.dataset.errors.split(","),
        at: g.querySelector("polyline").getAttribute("points").split(" ").map(numbers),
      }));
      const clear = () => { pick(null); tip.style.display = "none"; };
      chart.addEventListener("pointermove", event => {
        const box = svg.getBoundingClientRect();
        let x = (event.clientX - box.left) / box.width * 1000;
        const y = (event.clientY - box.top) / box.height * 1000;
        if (x < -40 || x > 1040) return clear();
        let where;
        if (places) {
          const place = near(places, p => Math.abs(p[0] - x));
          [x, where] = place;
        }
        const met = [];
        for (const line of lines) {
          if (line.g.classList.contains("hidden")) continue;
          const point = near(line.at, p => Math.abs(p[0] - x));
          if (!places || Math.abs(point[0] - x) < 2) met.push({ line, point, error: line.errors[line.at.indexOf(point)] });
        }
        if (!met.length) return clear();
        met.sort((a, b) => a.point[1] - b.point[1]);
        const best = near(met, m => Math.abs(m.point[1] - y));
        if (!places) where = Math.round(left + best.point[0] / 1000 * (right - left)).toLocaleString("en");
        pick(best.line.g.dataset.name);
        const head = document.createElement("b");
        const what = chart.dataset.what;
        head.textContent = `${!places ? `${what} ${where}` : what === "fields kept" ? `${where} ${what}` : where} · ${chart.dataset.unit}`;
        const body = document.createElement("table");
        for (const m of met) {
          const row = body.insertRow();
          if (m === best) row.className = "best";
          row.insertCell().append(Object.assign(document.createElement("i"), { className: m.line.g.getAttribute("class").replace("on", "") }), m.line.g.dataset.name);
          row.insertCell().textContent = text(bottom + (1000 - m.point[1]) / 1000 * (top - bottom), top - bottom, log);
          row.insertCell().textContent = m.error ? `± ${m.error}` : "";
        }
        tip.replaceChildren(head, body);
        put(tip, svg, best.point[0] / 1000 * box.width, y / 1000 * box.height);
      });
      chart.addEventListener("pointerleave", clear);
    }
    for (const chart of all(".chart[data-bars]", part)) {
      const svg = chart.querySelector("svg"), tip = chart.querySelector(".tip"), bars = chart.dataset.bars.split("|");
      chart.addEventListener("pointermove", event => {
        const box = svg.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
        if (share < 0 || share >= 1) return void (tip.style.display = "none");
        tip.textContent = bars[Math.floor(share * bars.length)];
        put(tip, svg, share * box.width, event.clientY - box.top);
      });
      chart.addEventListener("pointerleave", () => { tip.style.display = "none"; });
    }
  }

  for (const sorted of all("table.sorts")) {
    const heads = all("th", sorted), body = sorted.tBodies[0];
    const value = (row, i) => {
      const cell = row.cells[i], given = cell.dataset.v ?? cell.textContent.trim();
      return given !== "" && !Number.isNaN(Number(given)) ? Number(given) : given;
    };
    heads.forEach((head, i) => {
      const sort = () => {
        // Numbers are wanted largest first, words from A.
        const falling = head.ariaSort ? head.ariaSort === "ascending" : head.classList.contains("r");
        for (const other of heads) other.ariaSort = null;
        head.ariaSort = falling ? "descending" : "ascending";
        const rows = [...body.rows].map(row => [value(row, i), row]);
        rows.sort(([a], [b]) => {
          if (a === "" || b === "") return (a === "") - (b === "");
          const order = typeof a === "number" && typeof b === "number" ? a - b
            : typeof a === typeof b ? a.localeCompare(b) : typeof a === "number" ? -1 : 1;
          return falling ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
    });
  }
})();
