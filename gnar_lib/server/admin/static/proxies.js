// The table of proxies.

import * as api from "./api.js";
import { ask, tell } from "./messages.js";
import { action, badge, graph, history, historyInFull, traffic } from "./cells.js";
import { lines, NONE } from "./columns.js";
import { make, setAttribute, setText } from "./dom.js";
import { count, plural, rate } from "./format.js";
import { Listing } from "./listing.js";

export const place = (proxy) => proxy.link || (proxy.port ? `port ${proxy.port}` : "");

export const limits = (proxy) =>
  [proxy.limit_down && `↓ ${rate(proxy.limit_down)}`, proxy.limit_up && `↑ ${rate(proxy.limit_up)}`].filter(Boolean);

/** Asks, and then ends a proxy. Returns whether it was ended. */
export async function endProxy(proxy) {
  const cut = proxy.users > 0 ? `, and ${plural(proxy.users, "user")} ${proxy.users === 1 ? "is" : "are"} cut off` : "";
  const what = proxy.link ? "It" : `Port ${proxy.port}`;
  const text = `${what} closes at once${cut}. The client is told, and does not open it again by itself.`;
  if (!(await ask(`End the proxy ${proxy.name}?`, text, "End proxy"))) return false;
  await api.endProxy(proxy.id);
  tell(`The proxy ${proxy.name} has ended.`);
  return true;
}

export function makeProxies(section, model) {
  const address = (proxy) => model.clientOf(proxy)?.address ?? "";
  const columns = [
    { key: "name", title: "Proxy", value: (proxy) => proxy.name, build: nameCell },
    { key: "client", title: "Client", value: address, build: clientCell(model) },
    {
      ...{ key: "users", title: "Users", descending: true, value: (proxy) => proxy.users },
      build: lines((proxy) => count(proxy.users), (proxy) => `of ${count(proxy.users_total)}`),
    },
    {
      ...{ key: "down", title: "Down", explanation: "From the local service to the users", descending: true },
      ...{ value: (proxy) => proxy.rate_down, build: traffic("down") },
    },
    {
      ...{ key: "up", title: "Up", explanation: "From the users to the local service", descending: true },
      ...{ value: (proxy) => proxy.rate_up, build: traffic("up") },
    },
    { key: "chart", title: "Last 5 min", build: graph(model) },
    { key: "limit", title: "Limit", build: lines((proxy) => limits(proxy)[0] ?? NONE, (proxy) => limits(proxy)[1]) },
    {
      ...{ key: "dropped", title: "Drops", explanation: "Datagrams that were not passed on", descending: true },
      ...{ value: (proxy) => proxy.dropped, build: lines((proxy) => (proxy.kind === "udp" ? count(proxy.dropped) : NONE)) },
    },
    {
      ...{ key: "action", title: "End", isTitleHidden: true },
      build: action("End", (proxy) => `End the proxy ${proxy.name}`, endProxy, (proxy) => proxy.state !== "gone"),
    },
  ];
  return new Listing(section, {
    columns,
    nouns: ["proxy", "proxies"],
    pageSize: 50,
    sort: "name",
    isLast: (proxy) => proxy.state === "gone",
    text: (proxy) => `${proxy.name} ${proxy.kind} ${proxy.state} ${proxy.port} ${proxy.link} ${address(proxy)}`,
    empty: "No proxy yet. One appears here as soon as a client opens it.",
  });
}

function nameCell(cell) {
  const name = make("a", { class: "first", "data-control": "name" }, "");
  const [state, renewState] = badge();
  const kind = make("span", { class: "kind" }, "");
  const link = make("span", {}, "");
  cell.append(make("span", { class: "title" }, name, state), make("span", { class: "second" }, kind, link));
  return (proxy) => {
    setText(name, proxy.name || "(no name)");
    setAttribute(name, "href", `#/proxy/${encodeURIComponent(proxy.id)}`);
    setText(kind, proxy.kind);
    setText(link, place(proxy));
    renewState(proxy);
  };
}

function clientCell(model) {
  return (cell) => {
    const address = make("span", { class: "first" }, "");
    const since = make("span", { class: "second" }, "");
    cell.append(address, since);
    return (proxy) => {
      const client = model.clientOf(proxy);
      setText(address, client?.address ?? NONE);
      setText(since, about(proxy, client, model.now));
      setAttribute(cell, "title", historyInFull(proxy));
    };
  };
}

function about(proxy, client, now) {
  if (proxy.state === "gone") return history(proxy, now);
  if (proxy.state === "waiting") return proxy.port ? "away; its port is kept" : "away; its name is kept";
  return client ? `${client.version}, ${history(client, now)}` : "";
}
