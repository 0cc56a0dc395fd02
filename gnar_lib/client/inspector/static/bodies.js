// Bodies as people read them: JSON with line breaks, forms as tables, pictures as such, all else as text or bytes.

import { make } from "./dom.js";
import { bytes, count } from "./format.js";

const HEX_BYTES = 512;
const HEX_IN_LINE = 16;
const PICTURES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp", "image/x-icon", "image/vnd.microsoft.icon", "image/svg+xml"]);

/** The elements that show a body. */
export function bodyElements(body) {
  if (body.size === 0) return [make("p", { class: "nothing" }, "No body.")];
  return [make("p", { class: "aside" }, about(body)), ...content(body)];
}

function about(body) {
  const parts = [`${bytes(body.size)}${body.media_type ? `, ${body.media_type}` : ""}`];
  if (body.undone.length > 0) parts.push(`${body.undone.join(", ")} undone`);
  if (body.left) parts.push(`${body.left} cannot be undone here`);
  if (body.kept === 0) parts.push("not kept");
  else if (body.is_cut) parts.push("only the beginning was kept");
  return parts.join(" · ");
}

function content(body) {
  if (body.kept === 0) return [];
  if (PICTURES.has(body.media_type) && !body.is_cut) return [picture(body)];
  if (body.form) return [pairs(body.form, "Form")];
  if (body.text == null) return [make("pre", { tabindex: 0, class: "hex" }, hex(decode(body.base64)))];
  return [make("pre", { tabindex: 0 }, readable(body))];
}

// A picture of SVG in <img> runs no script, and loads nothing.
function picture(body) {
  const data = body.text == null ? body.base64 : encode(body.text);
  return make("img", { class: "picture", alt: "The picture that was sent", src: `data:${body.media_type};base64,${data}` });
}

/** The text of a body: JSON gets line breaks. */
export function readable(body) {
  if (body.text == null) return body.base64 ?? "";
  const isJson = /^application\/([\w.+-]+\+)?json$|^text\/json$/.test(body.media_type) || (!body.media_type && /^\s*[[{]/.test(body.text));
  return isJson ? prettyJson(body.text) : body.text;
}

/** Sets line breaks into JSON and changes nothing else: numbers stay as they were written, and the end may be missing. */
export function prettyJson(text) {
  const parts = [];
  let depth = 0;
  const line = () => `\n${"  ".repeat(Math.min(depth, 40))}`;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\[^])*"?|[[\]{}:,]|\s+|[^[\]{}:,\s"]+/g)) {
    if (/^\s/.test(token)) continue;
    const last = parts.at(-1);
    if (token === "{" || token === "[") {
      depth += 1;
      parts.push(token, line());
    } else if (token === "}" || token === "]") {
      depth = Math.max(depth - 1, 0);
      if (/^\n/.test(last ?? "") && /^[[{]$/.test(parts.at(-2) ?? "")) parts.pop();
      else if (/^\n/.test(last ?? "")) parts[parts.length - 1] = line();
      else parts.push(line());
      parts.push(token);
    } else if (token === ",") parts.push(token, line());
    else if (token === ":") parts.push(": ");
    else parts.push(token);
  }
  return parts.join("");
}

/** A table of names and values. */
export function pairs(rows, title) {
  const body = make("tbody", {}, ...rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value))));
  return make("table", { class: "pairs", "aria-label": title }, body);
}

/** The bytes of base64. */
export const decode = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

function encode(text) {
  let binary = "";
  for (const byte of new TextEncoder().encode(text)) binary += String.fromCharCode(byte);
  return btoa(binary);
}

/** Bytes in hexadecimal, with what is readable beside them. */
export function hex(data) {
  const lines = [];
  for (let at = 0; at < Math.min(data.length, HEX_BYTES); at += HEX_IN_LINE) {
    const row = [...data.slice(at, Math.min(at + HEX_IN_LINE, HEX_BYTES))];
    const digits = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${digits.padEnd(HEX_IN_LINE * 3)} ${text}`);
  }
  if (data.length > HEX_BYTES) lines.push(`… and ${count(data.length - HEX_BYTES)} bytes more`);
  return lines.join("\n");
}
