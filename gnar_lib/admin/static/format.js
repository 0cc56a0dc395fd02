// Figures as people read them. Knows no page.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** Bytes with a unit: three figures, as in "1.42 MB". */
export function bytes(count) {
  let unit = 0;
  while (count >= 999.5 && unit < UNITS.length - 1) {
    count /= 1000;
    unit += 1;
  }
  const decimals = unit === 0 || count >= 99.95 ? 0 : count >= 9.995 ? 1 : 2;
  return `${count.toFixed(decimals)} ${UNITS[unit]}`;
}

export const rate = (perSecond) => `${bytes(perSecond)}/s`;

const whole = new Intl.NumberFormat("en");
export const count = (number) => whole.format(number);

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A length of time in its two largest units: "4 s", "3 min 05 s", "2 h 10 min", "5 d 3 h". */
export function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** A length of time in its largest unit, for what is long past: "3 min". */
export const roughAge = (seconds) => age(seconds).split(" ").slice(0, 2).join(" ");

const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const moment = (at) => day.format(at * 1000);

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const clockOfDay = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** The time of day; with the date if that was more than half a day ago. */
export const time = (at, now) => (now - at < 43200 ? clock : clockOfDay).format(at * 1000);
