"use strict";
// Elements with attributes, listeners ("onclick") and children; text is never read as HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value);
    }
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A choice of one among a few, as a labelled list; `options` are [value, text].
function selection(id, label, options, value, change) {
  const list = element("select", { id, onchange: () => change(list.value) },
    ...options.map(([each, text]) => element("option", { value: each, selected: each === value },
      text)));
  return element("label", { class: "choice" }, element("span", {}, label), list);
}

// A box of a colour, as in a legend.
function swatch(color) {
  const made = element("span", { class: "swatch", "aria-hidden": "true" });
  made.style.background = color;
  return made;
}
