// The table of clients.

import * as api from "./api.js";
import { ask, tell } from "./messages.js";
import { action, badge, history, historyInFull } from "./cells.js";
import { lines } from "./columns.js";
import { make, setAttribute, setText } from "./dom.js";
import { count, plural, rate } from "./format.js";
import { Listing } from "./listing.js";

const NAMES_SHOWN = 3;

export function makeClients(section, model) {
  const open = (client) =>
    client.proxies.map((id) => model.proxies.get(id)).filter((proxy) => proxy && proxy.state !== "gone");
  const sum = (client, key) => open(client).reduce((total, proxy) => total + proxy[key], 0);
  const names = (client) => (client.state === "gone" ? client.names : open(client).map((proxy) => proxy.name));

  async function disconnect(client) {
    const users = sum(client, "users");
    const cut = users > 0 ? ` ${plural(users, "user")} ${users === 1 ? "is" : "are"} cut off.` : "";
    const ends = `${plural(open(client).length, "proxy", "proxies")} of this client end${open(client).length === 1 ? "s" : ""}.`;
    const text = `${ends}${cut} The client is told, and does not come back by itself.`;
    if (!(await ask(`Disconnect the client ${client.address}?`, text, "Disconnect"))) return;
    await api.disconnectClient(client.id);
    tell(`The client ${client.address} is disconnected.`);
  }

  const columns = [
    { key: "address", title: "Client", value: (client) => client.address, build: addressCell },
    { key: "since", title: "Since", value: (client) => client.gone_at ?? client.since, descending: true, build: sinceCell(model) },
    {
      ...{ key: "proxies", title: "Proxies", descending: true, value: (client) => names(client).length },
      build: lines((client) => count(names(client).length), (client) => some(names(client))),
    },
    {
      ...{ key: "users", title: "Users", descending: true, value: (client) => sum(client, "users") },
      build: lines((client) => count(sum(client, "users"))),
    },
    {
      ...{ key: "traffic", title: "Down and up", descending: true, value: (client) => sum(client, "rate_down") },
      build: lines((client) => `↓ ${rate(sum(client, "rate_down"))}`, (client) => `↑ ${rate(sum(client, "rate_up"))}`),
    },
    {
      ...{ key: "action", title: "Disconnect", isTitleHidden: true },
      build: action(
        ...["Disconnect", (client) => `Disconnect the client ${client.address}`],
        ...[disconnect, (client) => client.state !== "gone"],
      ),
    },
  ];
  return new Listing(section, {
    columns,
    nouns: ["client", "clients"],
    pageSize: 20,
    sort: "address",
    isLast: (client) => client.state === "gone",
    text: (client) => `${client.address} ${client.version} ${client.state} ${client.reason} ${names(client).join(" ")}`,
    empty: "No client yet. Start one: gnar client -s this-host -l 3000 -r 9000",
  });
}

function some(names) {
  const more = names.length - NAMES_SHOWN;
  return names.slice(0, NAMES_SHOWN).join(", ") + (more > 0 ? ` and ${count(more)} more` : "");
}

function addressCell(cell) {
  const address = make("span", { class: "first" }, "");
  const [state, renewState] = badge();
  const version = make("span", { class: "second" }, "");
  cell.append(make("span", { class: "title" }, address, state), version);
  return (client) => {
    setText(address, client.address);
    setText(version, `${client.version}${client.multiplexed ? ", multiplexed" : ""}`);
    renewState(client);
  };
}

function sinceCell(model) {
  return (cell) => {
    const renew = lines((client) => history(client, model.now))(cell);
    return (client) => {
      renew(client);
      setAttribute(cell, "title", historyInFull(client));
    };
  };
}
