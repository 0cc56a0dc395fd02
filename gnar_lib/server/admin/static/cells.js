// Cells that several tables have. Each function builds a cell once, and returns what renews it.

import { lines } from "./columns.js";
import { Graph } from "./graph.js";
import { make, setAttribute, setText } from "./dom.js";
import { age, bytes, moment, rate, time } from "./format.js";
import { whileDisabled } from "./messages.js";

/** A rate, and the bytes so far. */
export function traffic(direction) {
  const text = lines((item) => rate(item[`rate_${direction}`]), (item) => bytes(item[`bytes_${direction}`]));
  return (cell) => {
    const renew = text(cell);
    return (item) => {
      renew(item);
      setAttribute(cell, "data-idle", item[`rate_${direction}`] < 1);
    };
  };
}

export function graph(model) {
  return (cell) => {
    const drawing = new Graph();
    cell.append(drawing.element);
    return (item) => drawing.show(item.chart, model.now);
  };
}

/** A button that does `act(item)`; `label(item)` names it to a screen reader, `isShown(item)` says whether it is there. */
export function action(text, label, act, isShown = () => true) {
  return (cell) => {
    let present;
    const press = () => whileDisabled(button, () => act(present));
    const button = make("button", { type: "button", class: "end changing", "data-control": "end", onclick: press }, text);
    cell.append(button);
    return (item) => {
      present = item;
      button.hidden = !isShown(item);
      setAttribute(button, "aria-label", label(item));
    };
  };
}

/** A word for the state, with a colour. */
export function badge() {
  const element = make("span", { class: "badge" }, "");
  const renew = (item) => {
    setText(element, String(item.state));
    setAttribute(element, "data-state", item.state);
  };
  return [element, renew];
}

/** When and why something went away, or since when it is there. */
export function history(item, now) {
  if (item.state !== "gone") return `since ${age(now - item.since)}`;
  const why = item.reason ? `: ${item.reason}` : "";
  return `gone ${time(item.gone_at, now)}${why}`;
}

/** The same with dates, as a tip. */
export function historyInFull(item) {
  const gone = item.state === "gone" ? `, gone ${moment(item.gone_at)}` : "";
  return `Came ${moment(item.since)}${gone}`;
}
