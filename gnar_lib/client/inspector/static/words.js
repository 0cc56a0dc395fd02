// Times and states of requests as people read them. Knows no page.

/** A length of time: "340 µs", "12.3 ms", "1.52 s". */
export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.1) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

/** What the column of statuses says. */
export function statusText(row) {
  if (row.status) return row.state === "broken" ? `${row.status}, cut` : String(row.status);
  return row.state === "broken" ? "none" : "…";
}

/** The kind of a status, for its colour. */
export function statusKind(row) {
  if (row.state === "broken") return "bad";
  if (!row.status || row.status < 200) return "plain";
  return ["good", "plain", "wait", "bad"][Math.min(Math.floor(row.status / 100), 5) - 2];
}

export const label = (row) => `#${row.id} ${row.method} ${row.target.slice(0, 60)} ${statusText(row)}`;

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
export const clockTime = (at) => clock.format(at * 1000);
