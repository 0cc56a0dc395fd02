// Calls of gnar's API. Knows addresses, statuses and what they mean in words; no page.

const TIMEOUT_MS = 10_000;
const KEY_NAME = "gnar-page-key";
const KEY_BYTES = 16;

/**
 * What this page sends with each request, beside the cookie of its login. Browsers send cookies to every port of a
 * host, also to those of other people's services; what a page stores is given to pages of the same port alone.
 */
export const pageKey = storedKey();

function storedKey() {
  const fresh = [...crypto.getRandomValues(new Uint8Array(KEY_BYTES))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    const stored = localStorage.getItem(KEY_NAME);
    if (stored) return stored;
    localStorage.setItem(KEY_NAME, fresh);
  } catch {
    // Nothing may be stored here: the login is good until the page is closed.
  }
  return fresh;
}

/** Why a call did not work, in words for a person; `status` is 0 when the server was not reached. */
export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function call(method, path, body) {
  let answer;
  try {
    answer = await fetch(`api/v1/${path}`, {
      method,
      headers: { "X-Gnar-Page": pageKey, ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  return answer.status === 204 ? null : answer.json();
}

// Errors are problem+json (RFC 9457); a proxy in between may answer with something else.
async function reason(answer) {
  const problem = await answer.json().catch(() => ({}));
  return String(problem.detail || problem.title || `The server answered ${answer.status}.`).slice(0, 300);
}

export const server = () => call("GET", "server");
export const logout = () => call("POST", "logout");
export const endConnection = (id) => remove("connections", id);
export const endProxy = (id) => remove("proxies", id);
export const disconnectClient = (id) => remove("clients", id);

export async function login(password) {
  try {
    await call("POST", "login", { password });
  } catch (error) {
    if (error.status === 401) throw new Refused(401, "That password is wrong.");
    if (error.status === 429) throw new Refused(429, "Too many wrong passwords from your address. Try again in a minute.");
    throw error;
  }
}

async function remove(kind, id) {
  try {
    await call("DELETE", `${kind}/${encodeURIComponent(id)}`);
  } catch (error) {
    if (error.status === 404) return; // it has ended by itself meanwhile
    if (error.status === 403) throw new Refused(403, "You may look here, but not change anything.");
    throw error;
  }
}
