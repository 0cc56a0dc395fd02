// The dialogs of one request: the command for curl, and the request to be edited and sent again.

import * as calls from "./calls.js";
import { byId, setText } from "./dom.js";
import { tell, whileDisabled } from "./messages.js";

let present = null; // the exchange of the dialog that is open

export async function showCurl(exchange) {
  present = exchange;
  byId("curl-secrets").checked = false;
  await fillCurl();
  byId("curl-dialog").showModal();
  byId("curl-copy").focus();
}

async function fillCurl() {
  const { command, notes } = await calls.curl(present.id, byId("curl-secrets").checked);
  byId("curl-text").textContent = command;
  byId("curl-notes").textContent = notes.join("; ");
}

async function copyCurl() {
  await navigator.clipboard.writeText(byId("curl-text").textContent);
  byId("curl-dialog").close();
  tell("The command is copied.");
}

/** Opens the dialog; `onSent(id)` is called with the id of the new exchange. */
export function showEdit(exchange, onSent) {
  present = exchange;
  const { headers, body } = exchange.request;
  byId("edit-method").value = exchange.method;
  byId("edit-target").value = exchange.target;
  byId("edit-headers").value = headers.map(([name, value]) => `${name}: ${value}`).join("\n");
  const isText = (body.text != null && body.undone.length === 0) || body.size === 0;
  byId("edit-body").value = isText ? (body.text ?? "") : "";
  byId("edit-body").disabled = !isText;
  const note = isText ? (body.is_cut ? "Only the beginning of the body was kept." : "") : "The body is no plain text: it is sent as it was.";
  setText(byId("edit-note"), note);
  setText(byId("edit-problem"), "");
  byId("edit-form").onsubmit = (event) => {
    event.preventDefault();
    whileDisabled(event.submitter ?? byId("edit-form").querySelector(".main"), () => send(onSent));
  };
  byId("edit-dialog").showModal();
  byId("edit-target").focus();
}

async function send(onSent) {
  const lines = byId("edit-headers").value.split("\n").filter((line) => line.trim());
  const headers = lines.map((line) => [line.slice(0, line.indexOf(":")).trim(), line.slice(line.indexOf(":") + 1).trim()]);
  const changes = { method: byId("edit-method").value.trim(), target: byId("edit-target").value.trim(), headers };
  if (!byId("edit-body").disabled) changes.body = byId("edit-body").value;
  try {
    const { id } = await calls.replay(present.id, changes);
    byId("edit-dialog").close();
    onSent(id);
  } catch (error) {
    setText(byId("edit-problem"), error.message);
  }
}

byId("curl-secrets").addEventListener("change", () => fillCurl().catch((error) => tell(error.message)));
byId("curl-copy").addEventListener("click", ({ currentTarget }) => whileDisabled(currentTarget, copyCurl));
byId("edit-cancel").addEventListener("click", () => byId("edit-dialog").close());
