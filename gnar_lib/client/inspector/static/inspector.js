// The page: the list of requests, and which of them is opened.

import * as calls from "./calls.js";
import { lines } from "./columns.js";
import { Exchanges } from "./changes.js";
import { byId, make, setAttribute, setText } from "./dom.js";
import { bytes } from "./format.js";
import { Listing } from "./listing.js";
import { announce, ask, tell, whileDisabled } from "./messages.js";
import { Opened } from "./opened.js";
import { clockTime, duration, statusKind, statusText } from "./words.js";

const STATUS_TEXTS = { live: "Live", connecting: "Connecting", lost: "The client is not there; trying again" };
let isDrawing = false;

const model = new Exchanges({ changed: draw, status: showStatus });
const opened = new Opened(model);
const listing = new Listing(byId("requests"), {
  columns: [
    { key: "name", title: "Request", value: (row) => row.target, build: nameCell },
    { key: "status", title: "Status", value: (row) => row.status, build: statusCell },
    { key: "time", title: "Time", value: (row) => row.seconds ?? Infinity, descending: true, build: lines((row) => duration(row.seconds)) },
    { key: "size", title: "Size", value: (row) => row.response_bytes, descending: true, build: lines((row) => bytes(row.response_bytes)) },
    { key: "user", title: "User", value: (row) => row.user, build: lines((row) => row.user, (row) => row.proxy) },
    { key: "at", title: "At", value: (row) => row.number, descending: true, build: lines((row) => clockTime(row.at)) },
  ],
  nouns: ["request", "requests"],
  pageSize: 100,
  sort: "at",
  isSteady: true,
  text: (row) => `${row.method} ${row.host} ${row.target} ${statusText(row)} ${row.user} ${row.proxy} ${row.media_type}`,
  empty: "No request yet. Open the tunnel's address in a browser, and the requests appear here.",
});

function nameCell(cell) {
  const method = make("span", { class: "kind" }, "");
  const link = make("a", { class: "first", "data-control": "name" }, "");
  const below = make("span", { class: "second" }, "");
  cell.append(make("span", { class: "title" }, method, link), below);
  return (row) => {
    setText(method, row.method);
    setText(link, row.target);
    setAttribute(link, "href", `#/${row.id}`);
    const parts = [row.host, row.is_websocket && `WebSocket, ${row.messages} messages`, row.replay_of && `replay of #${row.replay_of}`];
    setText(below, parts.filter(Boolean).join(" · "));
  };
}

function statusCell(cell) {
  const badge = make("span", { class: "badge" }, "");
  cell.append(badge);
  return (row) => {
    setText(badge, statusText(row));
    setAttribute(badge, "data-kind", statusKind(row));
    setAttribute(badge, "title", row.problem);
  };
}

/** Draws once before the next frame, however much has arrived. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    const rows = [...model.rows.values()].map((row) => ({ ...row, id: String(row.id), number: row.id }));
    listing.show(rows);
    markOpened();
    opened.changed();
  });
}

function showStatus(status) {
  byId("status").dataset.status = status;
  setText(byId("status-text"), STATUS_TEXTS[status]);
}

// ---- which one is opened: the part of the address behind # -------------------------------------------------

function opening() {
  const found = /^#\/(\d+)(?:\/(\d+))?$/.exec(location.hash);
  return found ? [Number(found[1]), found[2] ? Number(found[2]) : null] : [null, null];
}

function go() {
  const [id, otherId] = opening();
  opened.open(id, otherId);
  markOpened();
  if (id === null) byId("requests-title").focus();
  else byId("opened-title").focus();
}

function markOpened() {
  const [id] = opening();
  for (const link of byId("requests").querySelectorAll("a[data-control]")) {
    setAttribute(link.closest("tr"), "data-opened", link.hash === `#/${id}` && "true");
    setAttribute(link, "aria-current", link.hash === `#/${id}` && "true");
  }
}

async function clear() {
  if (!(await ask("Forget all requests?", "They are gone from this page; a log file keeps its lines.", "Clear"))) return;
  await calls.clear();
  location.hash = "#/";
  announce("All requests are forgotten.");
}

byId("clear").addEventListener("click", ({ currentTarget }) => whileDisabled(currentTarget, clear));
window.addEventListener("hashchange", go);
window.addEventListener("unhandledrejection", ({ reason }) => tell(String(reason?.message ?? reason)));
setText(byId("host"), location.host);
if (location.hash) go();
