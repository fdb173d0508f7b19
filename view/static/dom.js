// Elements, numbers and addresses. Text comes into the page through text nodes alone: what a model wrote stays text.

const SVG = "http://www.w3.org/2000/svg"; // a name, which nobody opens

// h("td", {class: "number", onclick: f}, "text", element, [more]); null and false are left out.
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren(
    ...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false),
  );
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2);
  return size >= 100 ? value.toFixed(1) : String(Number(value.toPrecision(3)));
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(0)}%`;
}

export function link(view, parameters, ...children) {
  return h("a", {href: address(view, parameters)}, ...children);
}

export function address(view, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return `#${view}?${new URLSearchParams(given)}`;
}

// A labelled control: label("Sort by", h("select", ...)).
export function label(text, control) {
  return h("label", {}, h("span", {}, text), control);
}

export function select(options, chosen, onchange, attributes = {}) {
  const control = h(
    "select",
    {...attributes, onchange: () => onchange(control.value)},
    Object.entries(options).map(([value, text]) => h("option", {value, selected: value === chosen}, text)),
  );
  return control;
}
