// The page: which of its views is shown, and what feeds them.

import * as api from "./api.js";
import { makeClients } from "./clients.js";
import { byId, setText } from "./dom.js";
import { makeEvents } from "./events.js";
import { age, bytes, count, rate } from "./format.js";
import { LargeGraph } from "./graph.js";
import { announce, whileDisabled } from "./messages.js";
import { Model } from "./model.js";
import { makeProxies } from "./proxies.js";
import { OpenedProxy } from "./proxy.js";
import { Stream } from "./stream.js";

const model = new Model();
const proxies = makeProxies(byId("proxies"), model);
const clients = makeClients(byId("clients"), model);
const events = makeEvents(model);
const totalGraph = new LargeGraph(byId("total-graph"));
const openedProxy = new OpenedProxy(model, lock);
let stream = null;
let isDrawing = false;
let lostUntil = 0; // when the stream is tried again, on this browser's clock
let wasLost = false;

// ---- what is shown -----------------------------------------------------------------------------------------

/** Draws once before the next frame, however much has arrived. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    // A selection would be lost with the text below it, so the figures wait for a person who is copying some.
    const isSelecting = document.getSelection().type === "Range" && !document.activeElement.matches("input");
    document.body.classList.toggle("paused", isSelecting);
    if (!isSelecting) drawAll();
  });
}

function drawAll() {
  showFigures(model.server);
  const id = openedId();
  byId("overview").hidden = id !== null;
  byId("proxy").hidden = id === null;
  if (id === null) {
    totalGraph.show(model.totalChart(), model.now);
    proxies.show([...model.proxies.values()]);
    clients.show([...model.clients.values()]);
    events.show();
  } else {
    openedProxy.show();
  }
}

function showFigures(server) {
  if (server.now === undefined) return;
  const figures = {
    version: server.version,
    port: server.port,
    uptime: age(server.now - server.started_at),
    clients: count(server.clients),
    proxies: count(server.proxies),
    users: count(server.users),
    "users-total": count(server.users_total),
    "udp-users": count(server.udp_users),
    "rate-down": rate(server.rate_down),
    "rate-up": rate(server.rate_up),
    "bytes-down": bytes(server.bytes_down),
    "bytes-up": bytes(server.bytes_up),
    dropped: count(server.udp_dropped),
    descriptors: count(server.descriptors),
    lag: `${(server.loop_lag_s * 1000).toFixed(1)} ms`,
  };
  for (const [name, text] of Object.entries(figures)) {
    for (const element of document.querySelectorAll(`[data-figure="${name}"]`)) setText(element, String(text));
  }
  document.body.classList.toggle("read-only", server.may_change === false);
  byId("read-only").hidden = server.may_change !== false;
  byId("logout").hidden = !server.logged_in;
}

// ---- which proxy is opened: the part of the address behind # -----------------------------------------------

function openedId() {
  const found = /^#\/proxy\/(.+)$/.exec(location.hash);
  try {
    return found && decodeURIComponent(found[1]);
  } catch {
    return null;
  }
}

let lastId = null;

function go() {
  if (!stream) return;
  const id = openedId();
  if (id === null) openedProxy.close();
  else openedProxy.open(id);
  drawAll();
  if (id !== null) byId("proxy-name").focus();
  else if (/^#\w+$/.test(location.hash)) byId(`${location.hash.slice(1)}-title`)?.focus();
  else if (lastId !== null) focusOnProxy(lastId);
  lastId = id;
}

// Who comes back to the table goes on at the proxy that was opened.
function focusOnProxy(id) {
  const link = byId("proxies").querySelector(`a[href="#/proxy/${CSS.escape(encodeURIComponent(id))}"]`);
  (link ?? byId("proxies-title")).focus();
}

// ---- the stream --------------------------------------------------------------------------------------------

const STATUS_TEXTS = { live: "Live", connecting: "Connecting" };

function showStatus(status, waitS) {
  if (status === "connecting" && wasLost) return; // "lost" stays until it works again
  byId("status").dataset.status = status;
  document.body.classList.toggle("stale", status === "lost");
  byId("retry").hidden = status !== "lost";
  if (status === "lost") {
    lostUntil = performance.now() + waitS * 1000;
    countDown();
    if (!wasLost) announce("The connection to the server is lost. The page tries again by itself.");
  } else {
    setText(byId("status-text"), STATUS_TEXTS[status]);
    if (status === "live" && wasLost) announce("The connection to the server is back.");
  }
  wasLost = status === "lost";
}

function countDown() {
  if (byId("status").dataset.status !== "lost") return;
  const left = Math.ceil((lostUntil - performance.now()) / 1000);
  setText(byId("status-text"), left > 0 ? `Connection lost, trying again in ${left} s` : "Connection lost, trying again");
}

function start() {
  showPage(true);
  stream = new Stream("", {
    state(state, isFirst) {
      model.apply(state, isFirst);
      draw();
    },
    happened: (event, text) => model.happened(event, text),
    status: showStatus,
    locked: lock,
  });
  go();
}

function showPage(isShown) {
  for (const id of ["page", "session", "sections"]) byId(id).hidden = !isShown;
  byId("login").hidden = isShown;
}

// ---- login -------------------------------------------------------------------------------------------------

/** Shows the login form: the server wants a password. */
function lock() {
  stream?.close();
  stream = null;
  openedProxy.close();
  byId("question").close();
  showPage(false);
  byId("password").focus();
}

async function submit(event) {
  event.preventDefault();
  const problem = byId("login-problem");
  const field = byId("password");
  setText(problem, "");
  try {
    await api.login(field.value);
    field.value = "";
    field.removeAttribute("aria-invalid");
    start();
  } catch (error) {
    setText(problem, error.message);
    field.setAttribute("aria-invalid", "true");
    field.select();
  }
}

async function logout() {
  await api.logout();
  lock();
}

async function begin() {
  try {
    await api.server();
  } catch (error) {
    if (error.status === 401) return lock();
  }
  start(); // also if the server does not answer: the stream goes on trying
}

byId("login-form").addEventListener("submit", submit);
byId("logout").addEventListener("click", ({ currentTarget }) => whileDisabled(currentTarget, logout));
byId("retry").addEventListener("click", () => stream?.retry());
window.addEventListener("hashchange", go);
document.addEventListener("selectionchange", draw);
setInterval(countDown, 500);
setText(byId("host"), location.host);
begin();
