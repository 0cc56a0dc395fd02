// What differs between two requests and their answers, side by side.

import { readable } from "./bodies.js";
import { make } from "./dom.js";
import { bytes } from "./format.js";
import { duration, label, statusText } from "./words.js";

const MAX_LINES = 1500; // of each text, that are matched: the time grows with their product

/** The elements that compare two exchanges. */
export function comparison(left, right) {
  const facts = (each) => [
    ["Method", each.method],
    ["Target", each.target],
    ["Status", statusText(each)],
    ["Time", duration(each.seconds)],
    ["Size", bytes(each.response_bytes)],
  ];
  return [
    columns(label(left), label(right)),
    table("Exchange", facts(left), facts(right)),
    table("Fields of the request", left.request.headers, right.request.headers),
    texts("Body of the request", left.request.body, right.request.body),
    table("Fields of the answer", left.response.headers, right.response.headers),
    texts("Body of the answer", left.response.body, right.response.body),
  ];
}

const columns = (left, right) => make("div", { class: "columns" }, make("b", {}, left), make("b", {}, right));

function table(title, left, right) {
  const names = [...new Map([...left, ...right].map(([name]) => [name.toLowerCase(), name])).values()];
  const valueOf = (fields, name) => fields.filter(([each]) => each.toLowerCase() === name.toLowerCase()).map(([, value]) => value).join("\n");
  const rows = names.map((name) => {
    const [one, other] = [valueOf(left, name), valueOf(right, name)];
    const cells = [make("th", { scope: "row" }, name), make("td", {}, one), make("td", {}, other)];
    return make("tr", { "data-differs": one !== other }, ...cells);
  });
  return make("section", {}, make("h3", {}, title), make("table", { class: "pairs", "aria-label": title }, make("tbody", {}, ...rows)));
}

function texts(title, left, right) {
  const [one, other] = [readable(left), readable(right)];
  if (one === other) return make("section", {}, make("h3", {}, title), make("p", { class: "nothing" }, one ? "The same." : "None."));
  const rows = aligned(one.split("\n"), other.split("\n"));
  const side = (at) =>
    make("pre", { tabindex: 0 }, ...rows.map((row) => make("span", { class: "line", "data-differs": row[0] !== row[1] }, row[at] ?? "", "\n")));
  return make("section", {}, make("h3", {}, title), make("div", { class: "columns" }, side(0), side(1)));
}

/** Pairs of lines: equal ones beside each other, null where the other text has a line of its own. */
export function aligned(left, right) {
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) start += 1;
  const rows = left.slice(0, start).map((line) => [line, line]);
  [left, right] = [left.slice(start), right.slice(start)];
  if (left.length > MAX_LINES || right.length > MAX_LINES) return [...rows, ...unmatched(left, right)];
  return [...rows, ...matched(left, right)];
}

function unmatched(left, right) {
  return Array.from({ length: Math.max(left.length, right.length) }, (_, i) => [left[i] ?? null, right[i] ?? null]);
}

// The longest common subsequence of lines.
function matched(left, right) {
  const width = right.length + 1;
  const lengths = new Uint16Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      const [down, across] = [lengths[(i + 1) * width + j], lengths[i * width + j + 1]];
      lengths[i * width + j] = left[i] === right[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(down, across);
    }
  }
  const rows = [];
  let [removed, added] = [[], []]; // lines behind the last equal ones
  let [i, j] = [0, 0];
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) {
      rows.push(...unmatched(removed, added), [left[i++], right[j++]]);
      [removed, added] = [[], []];
    } else if (j >= right.length || (i < left.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) removed.push(left[i++]);
    else added.push(right[j++]);
  }
  return [...rows, ...unmatched(removed, added)];
}
