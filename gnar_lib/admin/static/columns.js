// Cells of text, which all tables have. Each function builds a cell once, and returns what renews it.

import { make, setAttribute, setText } from "./dom.js";

/** What a cell says that has nothing to say. */
export const NONE = "–";

/** A cell of one or two lines of text: `first(item)`, and smaller below it `second(item)`. */
export function lines(first, second) {
  return (cell) => {
    const above = make("span", { class: "first" }, "");
    const below = make("span", { class: "second" }, "");
    cell.append(above, below);
    return (item) => {
      const text = first(item);
      setText(above, text);
      setAttribute(cell, "data-none", text === NONE);
      setText(below, second?.(item) ?? "");
    };
  };
}
