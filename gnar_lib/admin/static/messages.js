// What the page says to a person: short messages, and the question before something is ended.

import { byId } from "./dom.js";

const SHOWN_MS = 6000;
let hiding = 0;

/** Says something to a screen reader alone. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/** Shows a message for some seconds, and says it. */
export function tell(text) {
  byId("message").textContent = text;
  byId("message").hidden = false;
  announce(text);
  clearTimeout(hiding);
  hiding = setTimeout(() => (byId("message").hidden = true), SHOWN_MS);
}

/** Asks whether to do something. The dialog starts at "Cancel", and Escape cancels too. */
export function ask(question, consequence, answer) {
  const dialog = byId("question");
  byId("question-title").textContent = question;
  byId("question-text").textContent = consequence;
  byId("question-yes").textContent = answer;
  dialog.returnValue = "";
  dialog.showModal();
  byId("question-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Makes a button that does `act`, and cannot be pressed again until that is through. */
export async function whileDisabled(button, act) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // it keeps the focus, which a disabled one would lose
  try {
    await act();
  } catch (error) {
    tell(error.message);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}
