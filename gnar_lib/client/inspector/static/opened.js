// The request that is opened: what is known of it, both bodies, messages, and how it compares with another.

import { bodyElements, decode, hex, pairs } from "./bodies.js";
import * as calls from "./calls.js";
import { comparison } from "./compare.js";
import { showCurl, showEdit } from "./dialogs.js";
import { byId, Children, make, setAttribute, setText } from "./dom.js";
import { bytes, count, moment } from "./format.js";
import { tell, whileDisabled } from "./messages.js";
import { clockTime, duration, label, statusText } from "./words.js";

const AGAIN_MS = 400; // between two looks at one that goes on
const MAX_OTHERS = 100;

export class Opened {
  #model;
  #id = null;
  #otherId = null;
  #exchange = null; // as it was told last
  #other = null;
  #isLoading = false;
  #shown = new Map(); // what each part shows, as JSON: a part that stays the same keeps selection and place
  #messages = new Children(byId("messages-list"), makeMessage);

  constructor(model) {
    this.#model = model;
    const press = (id, act) => byId(id).addEventListener("click", ({ currentTarget }) => whileDisabled(currentTarget, act));
    press("replay", () => this.#replay());
    press("edit", () => showEdit(this.#exchange, goTo));
    press("curl", () => showCurl(this.#exchange));
    byId("other").addEventListener("change", () => this.#compareWith(byId("other").value));
  }

  /** Shows this exchange, compared with another if `otherId` is given; null closes. */
  open(id, otherId) {
    if (id !== this.#id) {
      this.#exchange = null;
      this.#shown.clear();
    }
    this.#id = id;
    this.#otherId = otherId;
    this.#other = null;
    byId("opened").hidden = id === null;
    document.body.classList.toggle("is-opened", id !== null);
    if (id !== null) this.#load();
  }

  /** Takes note that something has changed. */
  changed() {
    if (this.#id === null) return;
    this.#showOthers();
    const row = this.#model.rows.get(this.#id);
    if (row && row.change !== this.#exchange?.change) this.#load();
  }

  async #load() {
    if (this.#isLoading) return;
    this.#isLoading = true;
    const [id, otherId] = [this.#id, this.#otherId];
    try {
      this.#exchange = await calls.exchange(id);
      this.#other = otherId && (await calls.exchange(otherId));
    } catch (error) {
      if (error.status !== 404) tell(error.message);
      if (this.#exchange?.id !== id) this.#exchange = null; // what is shown stays, though it is kept no longer
    }
    if (id === this.#id && otherId === this.#otherId) this.#show();
    setTimeout(() => {
      this.#isLoading = false;
      const row = this.#model.rows.get(this.#id);
      if (this.#id !== null && (id !== this.#id || otherId !== this.#otherId || (row && row.change !== this.#exchange?.change))) this.#load();
    }, id === this.#id ? AGAIN_MS : 0);
  }

  #show() {
    const exchange = this.#exchange;
    byId("known").hidden = !exchange;
    byId("unknown").hidden = Boolean(exchange);
    setText(byId("opened-title"), exchange ? `${exchange.method} ${exchange.target}` : "Request");
    if (!exchange) return;
    setAttribute(byId("one-har"), "href", `api/exchanges/${exchange.id}/har`);
    const { target, query, kept_messages: messages, request, response } = exchange;
    this.#renew("facts", [exchange.change, target], () => facts(exchange));
    this.#renew("timing", [exchange.request_s, exchange.first_byte_s, exchange.seconds], () => timing(exchange));
    this.#renew("request", [query, request], () => [...(query.length ? [make("h3", {}, "Query"), pairs(query, "Query")] : []), ...side(request)]);
    this.#renew("response", [exchange.status, response], () => (exchange.status ? side(response) : [make("p", { class: "nothing" }, "None yet.")]));
    byId("messages").hidden = !exchange.is_websocket;
    this.#messages.show(messages.map((message) => ({ id: message.number, ...message })));
    setText(byId("messages-note"), messagesNote(exchange));
    byId("comparison").hidden = !this.#other;
    if (this.#other) this.#renew("differences", [exchange, this.#other], () => comparison(exchange, this.#other));
    this.#showOthers();
  }

  #renew(id, data, build) {
    const text = JSON.stringify(data);
    if (this.#shown.get(id) === text) return;
    this.#shown.set(id, text);
    byId(id).replaceChildren(...build());
  }

  // Those of the same path come first, since these are what one compares.
  #showOthers() {
    if (document.activeElement === byId("other") && byId("other").options.length > 0) return; // a person is choosing
    const path = (row) => row.target.split("?")[0];
    const own = this.#model.rows.get(this.#id);
    const rows = [...this.#model.rows.values()].filter((row) => row.id !== this.#id).reverse();
    if (own) rows.sort((a, b) => Number(path(b) === path(own)) - Number(path(a) === path(own)));
    const others = rows.slice(0, MAX_OTHERS).map((row) => [String(row.id), label(row)]);
    this.#renew("other", others, () => [["", "Compare with …"], ...others].map(([value, text]) => make("option", { value }, text)));
    byId("other").value = this.#otherId ?? "";
  }

  #compareWith(otherId) {
    location.hash = otherId ? `#/${this.#id}/${otherId}` : `#/${this.#id}`;
  }

  async #replay() {
    const { id } = await calls.replay(this.#id);
    goTo(id);
  }
}

function goTo(id) {
  location.hash = `#/${id}`;
  tell(`Sent again, as #${id}.`);
}

// ---- the parts ---------------------------------------------------------------------------------------------

function facts(exchange) {
  const rows = {
    Status: `${statusText(exchange)} ${exchange.reason}`,
    Problem: exchange.problem,
    "Sent before": exchange.interim.join(", "),
    URL: exchange.url,
    Began: moment(exchange.at),
    User: exchange.user || "unknown",
    Proxy: exchange.proxy,
    Size: `${bytes(exchange.request_bytes)} asked, ${bytes(exchange.response_bytes)} answered`,
  };
  const shown = Object.entries(rows).filter(([, text]) => text);
  const elements = shown.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text)));
  if (exchange.replay_of) {
    const links = [make("a", { href: `#/${exchange.replay_of}` }, `#${exchange.replay_of}`), ", ", make("a", { href: `#/${exchange.replay_of}/${exchange.id}` }, "compare")];
    elements.push(make("div", {}, make("dt", {}, "Replay of"), make("dd", {}, ...links)));
  }
  return elements;
}

function timing({ request_s: sent, first_byte_s: first, seconds }) {
  const end = seconds ?? Math.max(sent ?? 0, first ?? 0);
  const asked = Math.min(sent ?? end, end);
  const parts = [
    ["asking", asked],
    ["waiting", Math.max((first ?? end) - asked, 0)],
    ["answering", Math.max(end - Math.max(first ?? end, asked), 0)],
  ];
  const whole = parts.reduce((sum, [, length]) => sum + length, 0) || 1;
  const bar = make("div", { class: "bar", "aria-hidden": "true" });
  for (const [name, length] of parts) {
    const part = make("span", { class: name });
    part.style.width = `${(100 * length) / whole}%`;
    bar.append(part);
  }
  const text = parts.map(([name, length]) => `${name} ${duration(length)}`).join(", ");
  return [bar, make("p", { class: "aside" }, `${text}${seconds == null ? ", and going on" : `: ${duration(seconds)}`}`)];
}

function side({ headers, body }) {
  return [make("h3", {}, `Header fields (${count(headers.length)})`), pairs(headers, "Header fields"), make("h3", {}, "Body"), ...bodyElements(body)];
}

function makeMessage(message) {
  const who = message.is_of_user ? "↑ user" : "↓ service";
  const size = `${bytes(message.size)}${message.is_cut ? ", cut" : ""}`;
  const kind = message.code ? `close ${message.code}` : message.kind;
  const head = make("p", { class: "aside" }, `${who} · ${clockTime(message.at)} · ${kind} · ${size}`);
  const text = message.is_compressed ? "compressed, and not readable here" : (message.text ?? hex(decode(message.base64)));
  const element = make("li", { class: message.is_of_user ? "of-user" : "of-service" }, head, ...(text ? [make("pre", { tabindex: 0 }, text)] : []));
  return [element, () => {}];
}

function messagesNote({ messages, kept_messages: kept, has_lost_messages: hasLost }) {
  const parts = [`${count(messages)} so far`];
  if (kept.length < messages) parts.push(`the last ${count(kept.length)} are kept`);
  if (hasLost) parts.push("what came behind them could not be read");
  return parts.join(", ");
}
