"use strict";
// The page: the reader's choices, the controls that make them, and news from a server if there is
// one. Choices are kept by name, so they outlive an update of the page.
(() => {
  const choice = {
    axis: "virtual_s",
    values: "metric",
    together: true,
    target: null,
    zoom: null,
    hidden: new Set(), // names of methods
    seeds: new Set(), // seeds that are hidden
    sort: { key: null, descending: false },
    client: { id: null, method: null, search: "", sort: { key: "client", descending: false } },
    counts: (_, run) => !choice.seeds.has(run.seed),
    shows: (method, run) => !choice.hidden.has(method.name) && choice.counts(method, run),
  };
  let data = null;
  let parts = null;

  const dataOf = (page) => JSON.parse(page.getElementById("report-data").textContent);

  function start(given) {
    data = given;
    if (!data.methods) return; // a page that waits for the first evaluation
    if (!data.axes.some(({ column }) => column === choice.axis)) choice.axis = data.axes[0].column;
    const explore = document.getElementById("explore");
    const figures = document.getElementById("curves");
    const [place, readout, spoken] = frame(explore);
    if (!parts) figures.open = false;
    parts = {
      chart: Chart.make(place, (reading) => show(place, readout, spoken, reading)),
      table: Table.make(document.getElementById("results"), data, sort),
      clients: null,
    };
    parts.clients = Clients.make(document.getElementById("clients"), data, choice);
    draw();
    window.report = { data, choice, chart: parts.chart };
  }

  function draw() {
    const cursor = parts.chart.cursor();
    parts.chart.draw(data, choice);
    parts.chart.point(cursor);
    parts.table.draw(choice);
  }

  function sort(key) {
    const { sort: now } = choice;
    if (now.key !== key) choice.sort = { key, descending: false };
    else if (!now.descending) choice.sort = { key, descending: true };
    else choice.sort = { key: null, descending: false };
    parts.table.draw(choice);
  }

  // ---- controls ----------------------------------------------------------------------------------

  function frame(explore) {
    const { metric, methods } = data;
    const set = (name) => (value) => { choice[name] = value; draw(); };
    const seeds = [...new Set(methods.flatMap(({ runs }) => runs.map(({ seed }) => seed)))]
      .sort((a, b) => a - b);
    const worst = methods.some(({ runs }) => runs.some((run) => run.worst));
    const controls = element("div", { class: "controls" },
      selection("axis", "against", data.axes.map(({ column, label }) => [column, label]), choice.axis,
        set("axis")),
      worst ? selection("values", "values", [["metric", `test ${metric.label}`],
        ["worst", `worst-decile client ${metric.label}`]], choice.values, set("values")) : null,
      seeds.length > 1 ? selection("seeds", "seeds", [["mean", "mean and range"], ["each", "one by one"]],
        choice.together ? "mean" : "each",
        (value) => { choice.together = value === "mean"; draw(); }) : null,
      target(metric));
    const place = element("div", { class: "chart", tabindex: "0", role: "application", "aria-label":
      `Curves of the ${metric.label}; the arrow keys read them point by point` });
    place.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 };
      if (event.key === "Escape") parts.chart.leave();
      else if (by[event.key]) parts.chart.step(by[event.key]);
      else return;
      event.preventDefault();
    });
    place.addEventListener("blur", () => parts.chart.leave());
    const readout = element("div", { class: "readout", hidden: true });
    const spoken = element("p", { class: "unseen", role: "status" });
    explore.replaceChildren(controls,
      chips("Methods", methods.map(({ name, color }) => [name, name, color]), choice.hidden),
      ...(seeds.length > 1 ? [chips("Seeds", seeds.map((seed) => [seed, String(seed), null]),
        choice.seeds)] : []),
      element("div", { class: "stage" }, place, readout), spoken, note());
    explore.hidden = false;
    return [place, readout, spoken];
  }

  function target(metric) {
    const factor = metric.share ? 100 : 1;
    const value = choice.target === null ? "" : Number((choice.target * factor).toPrecision(12));
    const input = element("input", { type: "number", step: "any", id: "target", value,
      placeholder: data.targets.length
        ? `as ${Number((data.targets[data.targets.length - 1] * factor).toPrecision(12))}` : null,
      min: metric.share ? 0 : null, max: metric.share ? 100 : null, "aria-describedby": "target-says" });
    const says = element("span", { id: "target-says", class: "says", role: "status" });
    input.addEventListener("input", () => {
      const given = input.value.trim() === "" ? null : Number(input.value) / factor;
      const wrong = input.validity.badInput ||
        (given !== null && (!Number.isFinite(given) || (metric.share && !(given > 0 && given <= 1))));
      input.setAttribute("aria-invalid", String(wrong));
      says.textContent = wrong ? "above 0, at most 100" : "";
      if (wrong) return;
      choice.target = given;
      draw();
    });
    return element("label", { class: "choice" },
      element("span", {}, `your target${metric.share ? " (%)" : ""}`), input, says);
  }

  // Boxes that show and hide; `hidden` holds what is hidden.
  function chips(legend, entries, hidden) {
    return element("fieldset", { class: "chips" }, element("legend", {}, legend),
      ...entries.map(([key, text, color]) => {
        const box = element("input", { type: "checkbox", onchange: () => {
          if (box.checked) hidden.delete(key);
          else hidden.add(key);
          draw();
          parts.clients.draw();
        } });
        box.checked = !hidden.has(key);
        return element("label", {}, box, color ? swatch(color) : null, text);
      }));
  }

  function note() {
    const said = ["Move over the curves to read them; drag to enlarge, double-click to return."];
    const several = data.methods.some(({ runs }) => runs.length > 1);
    if (several) {
      said.push("Over several seeds: the mean, and the range from the lowest to the highest.");
    }
    said.push("The rows of your target count the seeds that are shown" +
      (several ? "; the other rows of the table always count all." : "."));
    const thinned = data.methods.flatMap(({ runs }) => runs).filter((run) => !run.exact);
    if (thinned.length) {
      said.push("Of long runs not every evaluation is in this page, so that a target of yours may " +
        "be read somewhat late.");
    }
    return element("p", { class: "notes" }, said.join(" "));
  }

  // ---- readings of the chart ---------------------------------------------------------------------

  function show(place, readout, spoken, reading) {
    if (!reading || !reading.entries.length) {
      readout.hidden = true;
      return;
    }
    const { metric } = data;
    const text = (value) => Numbers.text(metric, value);
    const better = metric.higher_is_better ? -1 : 1;
    const entries = [...reading.entries].sort((a, b) => better * (a.value - b.value));
    const { label, kind } = reading.axis;
    const where = `${label} ${kind ? Numbers.quantity(reading.x, kind) : reading.x}`;
    const name = ({ method, seed }) => {
      const alone = data.methods.find((each) => each.name === method).runs.length === 1;
      return seed === null || alone ? method : `${method}, seed ${seed}`;
    };
    const color = (entry) => data.methods.find((each) => each.name === entry.method).color;
    readout.replaceChildren(element("strong", {}, where), element("table", {},
      element("tbody", {}, ...entries.map((entry) => element("tr", {},
        element("th", { scope: "row" }, swatch(color(entry)), name(entry)),
        element("td", {}, text(entry.value)),
        element("td", { class: "range" },
          entry.low === null ? "" : `${text(entry.low)} to ${text(entry.high)}`))))));
    readout.hidden = false;
    const width = readout.offsetWidth;
    const right = reading.left + 16 + width <= reading.width;
    const left = right ? reading.left + 16 : reading.left - 16 - width;
    readout.style.left = `${Math.max(Math.min(left, reading.width - width), 0)}px`;
    if (document.activeElement === place) {
      spoken.textContent = `${where}: ${entries.map((e) => `${name(e)} ${text(e.value)}`).join(", ")}`;
    }
  }

  // ---- news from `fedjax-het watch` ---------------------------------------------------------------

  const POLL_MS = 1000;

  async function poll() {
    let told;
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      told = await answer.json();
      if (told.version !== data.version) await update();
    } catch {
      told = { state: "gone", text: "The watching program has ended; this is what it showed last." };
    }
    const banner = document.getElementById("live");
    banner.className = told.state;
    if (banner.textContent !== told.text) banner.textContent = told.text;
    setTimeout(poll, POLL_MS);
  }

  // Replaces what the server wrote, and keeps what the reader chose, opened and looks at.
  async function update() {
    const answer = await fetch("./", { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const open = new Set([...document.querySelectorAll("details[open]")].map(keyOf));
    const known = new Set([...document.querySelectorAll("details")].map(keyOf));
    for (const each of page.querySelectorAll("details")) {
      if (known.has(keyOf(each))) each.open = open.has(keyOf(each));
    }
    const focused = pathOf(document.activeElement);
    const scroll = [window.scrollX, window.scrollY];
    const table = document.querySelector("#clients .tall");
    const inner = table ? table.scrollTop : 0;
    const cursor = parts ? parts.chart.cursor() : -1;
    document.title = page.title;
    const main = document.querySelector("main");
    main.replaceWith(document.adoptNode(page.querySelector("main")));
    start(dataOf(page));
    window.scrollTo(...scroll);
    const again = document.querySelector("#clients .tall");
    if (again) again.scrollTop = inner;
    refocus(focused);
    if (parts) parts.chart.point(cursor);
  }

  const keyOf = (details) => details.id || details.querySelector("summary").textContent;

  // The way to an element through the children of the page, if it can have the focus.
  function pathOf(focused) {
    const path = [];
    for (let at = focused; at && at !== document.body; at = at.parentElement) {
      path.unshift([...at.parentElement.children].indexOf(at));
    }
    const selected = focused && focused.type === "search" ? focused.selectionStart : null;
    return { path, tag: focused ? focused.tagName : null, value: focused ? focused.value : null,
      selected };
  }

  function refocus({ path, tag, value, selected }) {
    let at = document.body;
    for (const i of path) at = at && at.children[i];
    if (!at || at === document.body || at.tagName !== tag) return;
    if (tag === "INPUT" && at.type !== "checkbox") at.value = value;
    at.focus({ preventScroll: true });
    if (selected !== null) at.setSelectionRange(selected, selected);
  }

  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width && parts) parts.chart.resize();
    width = window.innerWidth;
  });

  // On paper the folded figures take the place of the chart.
  window.addEventListener("beforeprint", () => {
    const figures = document.getElementById("curves");
    if (figures) figures.open = true;
  });

  start(dataOf(document));
  if (data.live) poll();
})();
