// The last events, in words.

import { byId, Children, make, setAttribute, setText } from "./dom.js";
import { age, count, moment, time } from "./format.js";

const SHOWN = 10;

// What an event is called, and how grave it is: an event that is not here gets its own name.
const KINDS = {
  "client-came": ["Client connected", "good"],
  "client-returned": ["Client came back", "good"],
  "client-gone": ["Client gone", "bad"],
  "login-refused": ["Login refused", "bad"],
  "proxy-opened": ["Proxy opened", "good"],
  "proxy-closed": ["Proxy closed", "plain"],
  "proxy-refused": ["Proxy refused", "bad"],
  "user-refused": ["User turned away", "bad"],
  "datagrams-dropped": ["Datagrams dropped", "bad"],
  "descriptors-short": ["Out of descriptors", "bad"],
  reloaded: ["Configuration read again", "plain"],
  stopping: ["Stopping", "bad"],
};
const LEFT_OUT = new Set(["event", "at", "id", "side", "broke_protocol", "multiplexed", "cause", "ports"]);
const NAMELESS = new Set(["client", "peer", "user", "name", "proxy", "kind", "reason", "where", "effect"]);

export function makeEvents(model) {
  const list = byId("events-list");
  const rows = new Children(list, makeRow);
  let isWhole = false;
  byId("events-more").addEventListener("click", () => {
    isWhole = !isWhole;
    show();
  });

  function makeRow(event) {
    const [title, gravity] = KINDS[event.event] ?? [words(String(event.event)), "plain"];
    const at = make("time", { datetime: new Date(event.at * 1000).toISOString(), title: moment(event.at) }, "");
    const text = make("span", {}, make("b", {}, title), " ", details(event));
    const row = make("li", { "data-gravity": gravity }, at, text);
    return [row, () => setText(at, time(event.at, model.now))];
  }

  function show() {
    rows.show(isWhole ? model.events : model.events.slice(0, SHOWN));
    const more = byId("events-more");
    more.hidden = model.events.length <= SHOWN;
    setText(more, isWhole ? "Show the last ones only" : `Show all ${count(model.events.length)}`);
    setAttribute(more, "aria-expanded", isWhole);
    byId("events-none").hidden = model.events.length > 0;
  }

  return { show };
}

const words = (name) => name.replaceAll(/[-_]/g, " ");

const isNothing = (name, value) => value === "" || value == null || value.length === 0 || (name === "port" && value === 0);

// The fields of an event, most of which need no name beside their value.
function details(event) {
  const fields = Object.entries(event).filter(([name, value]) => !LEFT_OUT.has(name) && !isNothing(name, value));
  const parts = fields.map(([name, value]) => {
    if (name.endsWith("_s")) return `${words(name.slice(0, -2))} ${age(value)}`;
    const text = Array.isArray(value) ? value.join(", ") : String(value);
    return NAMELESS.has(name) ? text : `${words(name)} ${text}`;
  });
  return parts.join(" · ");
}
