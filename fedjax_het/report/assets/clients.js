"use strict";
// Client by client: a table that can be searched and sorted, and all that is known of one client.
const Clients = (() => {
  const MOST_ROWS = 100; // rows shown at once

  function make(section, data, choice, redraw) {
    const { clients, methods, metric } = data;
    const at = clients.methods.map((method) => method.steps.length - 1);
    const evaluated = clients.methods.some((method) => method.values);
    const measured = (m, i) => {
      const { values } = clients.methods[m];
      return values ? values[at[m]][i] : null;
    };
    const share = (m, i, part) => {
      const work = clients.methods[m];
      return work.tasks[i] ? work[part][i] / work.tasks[i] : null;
    };
    const device = (i) => {
      const group = clients.groups[clients.group[i]] ?? "-";
      return clients.devices ? `${clients.devices[i]} (${group})` : group;
    };
    const seconds = (value) => (value === null ? "-" : Numbers.quantity(value, "s"));
    const current = () => Math.max(methods.findIndex(({ name }) => name === choice.client.method), 0);

    // Columns: heading, sort value, text. Those after the third are of the chosen method.
    const columns = [
      ["client", (i) => i, (i) => clients.ids[i]],
      ["device", (i) => device(i), device],
      ["samples", (i) => clients.samples[i], (i) => String(clients.samples[i])],
      ...(evaluated ? [[metric.label, (i, m) => measured(m, i),
        (i, m) => Numbers.text(metric, measured(m, i))]] : []),
      ["tasks", (i, m) => clients.methods[m].tasks[i], (i, m) => String(clients.methods[m].tasks[i])],
      ["merged", (i, m) => clients.methods[m].used[i], (i, m) => String(clients.methods[m].used[i])],
      ["work per task", (i, m) => share(m, i, "busy_s"), (i, m) => seconds(share(m, i, "busy_s"))],
      ["wait per task", (i, m) => share(m, i, "waiting_s"),
        (i, m) => seconds(share(m, i, "waiting_s"))],
    ];

    const search = element("input", { type: "search", value: choice.client.search,
      placeholder: "name or device", "aria-label": "Search the clients",
      oninput: () => { choice.client.search = search.value; list(); } });
    const count = element("p", { class: "notes", role: "status" });
    const head = element("tr");
    const body = element("tbody");
    const detail = element("div", { class: "detail", id: "client-detail" });
    const several = methods.length > 1;
    section.replaceChildren(
      element("h2", { id: "clients-title" }, "Clients"),
      element("div", { class: "controls" },
        element("label", { class: "choice" }, element("span", {}, "search"), search),
        several ? selection("columns", "columns of", methods.map(({ name }) => [name, name]),
          methods[current()].name, (name) => { choice.client.method = name; list(); }) : null),
      element("div", { class: "wide tall", tabindex: "0", role: "region",
        "aria-label": "Table of the clients" },
      element("table", { class: "clients" }, element("thead", {}, head), body)),
      count, detail);
    section.hidden = false;

    function list() {
      const m = current();
      const { key, descending } = choice.client.sort;
      const words = choice.client.search.trim().toLowerCase();
      let rows = [...clients.ids.keys()];
      if (words) {
        rows = rows.filter((i) => `${clients.ids[i]} ${device(i)}`.toLowerCase().includes(words));
      }
      const column = columns.find(([name]) => name === key) || columns[0];
      const sign = descending ? -1 : 1;
      rows.sort((a, b) => {
        const [x, y] = [column[1](a, m), column[1](b, m)];
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return sign * (x < y ? -1 : x > y ? 1 : 0) || a - b;
      });
      head.replaceChildren(...columns.map(([name]) => element("th", { scope: "col",
        "aria-sort": name === column[0] ? (descending ? "descending" : "ascending") : null },
      element("button", { type: "button", class: "sort", onclick: () => {
        choice.client.sort = { key: name, descending: name === column[0] && !descending };
        list();
        [...head.cells].find((cell) => cell.textContent === name).firstChild.focus();
      } }, name))));
      body.replaceChildren(...rows.slice(0, MOST_ROWS).map((i) => element("tr",
        { class: clients.ids[i] === choice.client.id ? "chosen" : null },
        element("th", { scope: "row" }, element("button", { type: "button", class: "open",
          "aria-controls": "client-detail", onclick: () => choose(clients.ids[i]) },
        clients.ids[i])),
        ...columns.slice(1).map(([, , text]) => element("td", {}, text(i, m))))));
      const of = clients.ids.length < clients.count
        ? `${clients.ids.length} of the ${clients.count} clients, evenly chosen; ` : "";
      const some = rows.length > MOST_ROWS ? `the first ${MOST_ROWS} of ${rows.length}` : rows.length;
      count.textContent = `${of}${some} shown. Work and waits are means over the tasks of ` +
        `${methods[m].name}, seed ${clients.methods[m].seed}. Choose a client to see more of it.`;
    }

    function choose(id) {
      choice.client.id = choice.client.id === id ? null : id;
      list();
      describe();
      const row = [...body.rows].find((each) => each.cells[0].textContent === id);
      if (row) row.cells[0].firstChild.focus({ preventScroll: true });
      if (choice.client.id !== null) detail.scrollIntoView({ block: "nearest" });
    }

    function describe() {
      const i = clients.ids.indexOf(choice.client.id);
      detail.replaceChildren();
      if (i < 0) return;
      const facts = [["device", device(i)], ["training samples", clients.samples[i]]];
      const visible = [...methods.keys()].filter((m) => !choice.hidden.has(methods[m].name));
      const rows = [
        ["tasks", (m) => clients.methods[m].tasks[i]],
        ["merged", (m) => clients.methods[m].used[i]],
        ["failed", (m) => clients.methods[m].failed[i]],
        ["time at work", (m) => seconds(clients.methods[m].busy_s[i])],
        ["time waiting for the merge", (m) => seconds(clients.methods[m].waiting_s[i])],
      ];
      if (evaluated) {
        rows.unshift([`test ${metric.label}`, (m) => Numbers.text(metric, measured(m, i))]);
        if (clients.methods.some(({ personal }) => personal)) {
          rows.splice(1, 0, ["after its local training", (m) =>
            Numbers.text(metric, clients.methods[m].personal ? clients.methods[m].personal[i] : null)]);
        }
        if (clients.methods.some(({ own }) => own && !own[i])) {
          facts.push(["its value", "made of the test set's accuracies per class, by its label shares"]);
        }
      }
      detail.append(
        element("h3", { tabindex: "-1" }, `Client ${clients.ids[i]}`),
        element("dl", {}, ...facts.flatMap(([name, value]) =>
          [element("dt", {}, name), element("dd", {}, String(value))])),
        element("div", { class: "wide" }, element("table", {},
          element("thead", {}, element("tr", {}, element("th", { scope: "col" }),
            ...visible.map((m) => element("th", { scope: "col" }, swatch(methods[m].color),
              methods[m].name)))),
          element("tbody", {}, ...rows.map(([name, text]) => element("tr", {},
            element("th", { scope: "row" }, name),
            ...visible.map((m) => element("td", {}, String(text(m))))))))),
        ...history(i, visible), ...labels(i));
    }

    // The metric of the client at the evaluations of the clients.
    function history(i, visible) {
      const steps = [...new Set(visible.flatMap((m) => clients.methods[m].steps))]
        .sort((a, b) => a - b);
      if (steps.length < 2) return [];
      const of = (m, step) => {
        const j = clients.methods[m].steps.indexOf(step);
        return j < 0 ? null : clients.methods[m].values[j][i];
      };
      return [element("div", { class: "wide" }, element("table", {},
        element("caption", {}, `Its test ${metric.label} at server steps`),
        element("thead", {}, element("tr", {}, element("th", { scope: "col" }),
          ...steps.map((step) => element("th", { scope: "col" }, String(step))))),
        element("tbody", {}, ...visible.map((m) => element("tr", {},
          element("th", { scope: "row" }, methods[m].name),
          ...steps.map((step) => element("td", {}, Numbers.text(metric, of(m, step)))))))))];
    }

    // Bars of the labels that the client holds.
    function labels(i) {
      if (!clients.labels) return [];
      const counts = clients.labels[i];
      const most = Math.max(...counts, 1);
      return [element("h4", {}, "Training samples by label"),
        element("ol", { class: "bars" }, ...counts.map((samples, c) => {
          const bar = element("span", { class: "bar", "aria-hidden": "true" });
          bar.style.width = `${(100 * samples) / most}%`;
          return element("li", {}, element("span", { class: "class" }, clients.classes[c]),
            element("span", { class: "track" }, bar), element("span", {}, String(samples)));
        }))];
    }

    function draw() {
      list();
      describe();
    }

    draw();
    return { draw };
  }

  return { make };
})();
