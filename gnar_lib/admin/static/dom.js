// Small helpers around the document. Text only ever gets in as text: no function here reads HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Makes an element: `make("td", { class: "num", title: "..." }, child or text, ...)`. A property `onclick` is a listener. */
export function make(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function makeSvg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Sets an element's text. A text that is the same is left alone, so that a selection in it stays. */
export function setText(element, text) {
  const node = element.firstChild;
  if (!node) element.append(text);
  else if (node.data !== text) node.data = text;
}

export function setAttribute(element, name, value) {
  if (value == null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** The children of `parent`, one for each item. `build(item)` returns an element and a function that renews it. */
export class Children {
  #parent;
  #build;
  #present = new Map(); // by the item's id

  constructor(parent, build) {
    this.#parent = parent;
    this.#build = build;
  }

  /** Makes the children those of `items`, in this order. What stays is renewed in place and keeps its focus. */
  show(items) {
    this.#remove(new Set(items.map((item) => item.id)));
    let place = this.#parent.firstElementChild;
    for (const item of items) {
      let child = this.#present.get(item.id);
      if (!child) {
        const [element, renew] = this.#build(item);
        child = { element, renew };
        this.#present.set(item.id, child);
      }
      child.renew(item);
      if (child.element === place) place = place.nextElementSibling;
      else this.#parent.insertBefore(child.element, place);
    }
  }

  #remove(wanted) {
    for (const [id, { element }] of this.#present) {
      if (wanted.has(id)) continue;
      if (element.contains(document.activeElement)) passFocus(element);
      element.remove();
      this.#present.delete(id);
    }
  }
}

// The focus of an element that goes away moves to the same control of a neighbour: who works by keyboard goes on from there.
function passFocus(element) {
  const name = document.activeElement.dataset.control;
  const like = (other) => other?.querySelector(`[data-control="${name}"]:not([hidden])`);
  const next = like(element.nextElementSibling) ?? like(element.previousElementSibling);
  (next ?? element.closest("[tabindex]"))?.focus({ preventScroll: true });
}
