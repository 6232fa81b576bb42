// Makes elements. Text goes in as text: nothing here ever parses markup.

const SVG = "http://www.w3.org/2000/svg";

/** el("td", { class: "num" }, "12", other): an element with attributes and children. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((one) => one !== null && one !== undefined));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Sets text only where it is another, so that a selection survives. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const drawn = new WeakMap();

/** One child for each item, in order. An item that looks as before keeps its child as it is. */
export function each(parent, items, keyOf, make) {
  const before = drawn.get(parent) ?? new Map();
  const after = new Map();
  for (const item of items) {
    const key = keyOf(item);
    const looks = JSON.stringify(item);
    const old = before.get(key);
    after.set(key, old?.looks === looks ? old : { looks, node: make(item) });
  }
  const nodes = [...after.values()].map((one) => one.node);
  const same = nodes.length === parent.children.length && nodes.every((one, at) => one === parent.children[at]);
  if (!same) parent.replaceChildren(...nodes);
  drawn.set(parent, after);
}
