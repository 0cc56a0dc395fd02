// Calls of the inspector. Knows addresses and what statuses mean in words; no page.

const TIMEOUT_MS = 10_000;

/** Why a call did not work, in words for a person; `status` is 0 when nobody answered. */
export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(`api/${path}`, { cache: "no-store", redirect: "error", signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  } catch {
    throw new Refused(0, "The client does not answer.");
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({})); // problem+json (RFC 9457)
    throw new Refused(answer.status, String(problem.detail || `The client answered ${answer.status}.`).slice(0, 300));
  }
  return answer.status === 204 ? null : answer.json();
}

export const exchange = (id) => call(`exchanges/${id}`);
export const curl = (id, withSecrets) => call(`exchanges/${id}/curl${withSecrets ? "?secrets=1" : ""}`);
export const replay = (id, changes = {}) => call(`exchanges/${id}/replay`, changes);
export const clear = () => call("clear", {});
