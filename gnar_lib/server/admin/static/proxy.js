// One proxy that was opened: its figures, its chart, and its live connections, which the server filters and sorts.

import * as api from "./api.js";
import { tell } from "./messages.js";
import { action, badge, history, historyInFull } from "./cells.js";
import { lines } from "./columns.js";
import { byId, make, setAttribute, setText } from "./dom.js";
import { age, bytes, count, rate } from "./format.js";
import { LargeGraph } from "./graph.js";
import { Listing } from "./listing.js";
import { endProxy, limits, place } from "./proxies.js";
import { Stream } from "./stream.js";

export class OpenedProxy {
  #model;
  #onLocked;
  #id = null;
  #stream = null;
  #graph = new LargeGraph(byId("proxy-graph"));
  #listing;
  #connections = null; // as the server sent them last
  #renewState;
  #renewEnd;

  constructor(model, onLocked) {
    this.#model = model;
    this.#onLocked = onLocked;
    this.#listing = new Listing(byId("connections"), {
      columns: this.#columns(),
      nouns: ["connection", "connections"],
      pageSize: 100,
      sort: "age",
      onQuery: () => this.#follow(),
      empty: "No user is connected.",
    });
    const [state, renewState] = badge();
    byId("proxy-state").append(state);
    this.#renewState = renewState;
    const end = action("End proxy", (proxy) => `End proxy ${proxy.name}`, endProxy, ({ state }) => state !== "gone");
    this.#renewEnd = end(byId("proxy-end"));
  }

  /** Shows this proxy from now on. */
  open(id) {
    if (id === this.#id) return;
    this.close();
    this.#id = id;
    this.#follow();
  }

  close() {
    this.#stream?.close();
    this.#stream = null;
    this.#id = null;
    this.#connections = null;
  }

  /** Renews the figures. */
  show() {
    const proxy = this.#model.proxies.get(this.#id);
    byId("proxy-known").hidden = !proxy;
    byId("proxy-unknown").hidden = Boolean(proxy);
    if (!proxy) {
      setText(byId("proxy-name"), "Proxy");
      return;
    }
    const { now } = this.#model;
    setText(byId("proxy-name"), proxy.name || "(no name)");
    this.#renewState(proxy);
    this.#renewEnd(proxy);
    this.#showLink(proxy);
    this.#showFacts(proxy, this.#model.clientOf(proxy), now);
    this.#graph.show(proxy.chart, now);
    if (this.#connections) this.#listing.show(this.#connections.connections, this.#connections);
  }

  // Only a link of HTTP can be followed: the text comes from a peer.
  #showLink(proxy) {
    const link = byId("proxy-link");
    const isWeb = /^https?:\/\//.test(proxy.link);
    setText(link, place(proxy));
    setAttribute(link, "href", isWeb && proxy.link);
  }

  #showFacts(proxy, client, now) {
    const facts = {
      kind: proxy.kind,
      client: client ? `${client.address} (${client.version})` : "–",
      since: history(proxy, now),
      users: `${count(proxy.users)} now, ${count(proxy.users_total)} in all`,
      down: `${rate(proxy.rate_down)}, ${bytes(proxy.bytes_down)} in all`,
      up: `${rate(proxy.rate_up)}, ${bytes(proxy.bytes_up)} in all`,
      limit: limits(proxy).join(" ") || "none",
      dropped: proxy.kind === "udp" ? `${count(proxy.dropped)} datagrams` : "–",
    };
    for (const [name, text] of Object.entries(facts)) setText(byId(`proxy-${name}`), text);
    byId("proxy-since").title = historyInFull(proxy);
  }

  // Has the server send the connections that are wanted now.
  #follow() {
    this.#stream?.close();
    if (this.#id === null) return;
    const query = new URLSearchParams({ proxy: this.#id, only: "connections", ...this.#listing.query });
    this.#stream = new Stream(`?${query}`, {
      state: ({ connections }) => this.#receive(connections),
      status: () => {},
      locked: this.#onLocked,
    });
  }

  #receive(connections) {
    if (!connections) return;
    this.#connections = connections;
    this.show();
  }

  #columns() {
    return [
      { key: "user", title: "User", value: (user) => user.user, build: lines((user) => user.user) },
      {
        ...{ key: "age", title: "Age", value: (user) => -user.since },
        build: lines((user) => age(this.#model.now - user.since)),
      },
      figure("rate_down", "Down", rate),
      figure("down", "Down in all", bytes, "bytes_down"),
      figure("rate_up", "Up", rate),
      figure("up", "Up in all", bytes, "bytes_up"),
      {
        ...{ key: "idle", title: "Idle", explanation: "Since when no byte has moved", descending: true },
        ...{ value: (user) => user.idle_s, build: lines(({ idle_s: idle }) => (idle < 2 ? "active" : age(idle))) },
      },
      {
        ...{ key: "action", title: "End", isTitleHidden: true },
        build: action("End", (user) => `End the connection of ${user.user}`, (user) => endConnection(user)),
      },
    ];
  }
}

/** A column of one figure; `key` is what the server calls the order. */
function figure(key, title, format, field = key) {
  const value = (user) => user[field];
  return { key, title, value, descending: true, build: lines((user) => format(value(user))) };
}

async function endConnection(user) {
  await api.endConnection(user.id);
  tell(`The connection of ${user.user} has ended.`);
}
