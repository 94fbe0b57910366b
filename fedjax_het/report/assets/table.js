"use strict";
// The table of the results: rows for a target of the reader's choice, order and choice of columns.
const Table = (() => {
  // The number that a cell shows; the cells of a row have one unit. NaN for "-" and "not reached".
  const shown = (cell) => parseFloat(cell.textContent);

  // Takes over the table in `section`; `choice` is read at every `draw`, `change` tells of a sort.
  function make(section, data, change) {
    const table = section.querySelector("table");
    const head = table.tHead.rows[0];
    const written = table.tBodies[0];
    const own = element("tbody", { class: "own" });
    table.insertBefore(own, written);
    const names = [...head.cells].slice(1);
    let parent = "";
    const base = [...written.rows].map((row) => {
      const title = row.cells[0];
      const label = title.textContent;
      if (!title.classList.contains("part")) parent = label;
      return line(row, title.classList.contains("part") ? `${parent} / ${label}` : label);
    });

    function line(row, key) {
      const [title, ...cells] = row.cells;
      if (cells.length > 1 && !key.startsWith("seeds") && cells.some((c) => !isNaN(shown(c)))) {
        const button = element("button", { type: "button", class: "sort",
          title: "Order the methods by this row" }, ...title.childNodes);
        button.addEventListener("click", () => change(key));
        title.append(button);
      }
      return { row, title, cells, key };
    }

    function ownRows(choice) {
      own.replaceChildren();
      if (choice.target === null) return [];
      const rows = Numbers.targetRows(data, choice.target, choice.counts);
      return rows.map(([label, cells], i) => {
        const part = label.startsWith(" ");
        const row = element("tr", {},
          element("th", { scope: "row", class: part ? "part" : "mine" }, label.trim()),
          ...cells.map((cell) => element("td", {}, cell === null ? "-" : cell)));
        own.append(row);
        return line(row, `own ${i}`);
      });
    }

    function draw(choice) {
      const focused = document.activeElement;
      const held = focused && own.contains(focused)
        ? [...own.querySelectorAll("button")].indexOf(focused) : -1;
      const rows = [...ownRows(choice), ...base];
      const sorted = rows.find(({ key }) => key === choice.sort.key);
      let order = [...names.keys()];
      if (sorted) {
        const values = sorted.cells.map(shown);
        const sign = choice.sort.descending ? -1 : 1;
        order.sort((a, b) => {
          if (isNaN(values[a]) || isNaN(values[b])) return isNaN(values[a]) - isNaN(values[b]);
          return sign * (values[a] - values[b]);
        });
      }
      const place = (row, cells) => {
        for (const i of order) {
          cells[i].hidden = choice.hidden.has(data.methods[i].name);
          row.append(cells[i]);
        }
      };
      place(head, names);
      for (const each of rows) {
        place(each.row, each.cells);
        if (each === sorted) {
          each.title.setAttribute("aria-sort", choice.sort.descending ? "descending" : "ascending");
        } else each.title.removeAttribute("aria-sort");
      }
      if (held >= 0) own.querySelectorAll("button")[held]?.focus();
    }

    return { draw };
  }

  return { make };
})();
