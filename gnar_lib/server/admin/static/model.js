// What the server has told, kept up to date from its stream. Knows no page.

const MAX_POINTS = 60;
const MAX_EVENTS = 200;
const EMPTY_STEP_S = 5;

/** The rates of the last minutes, one point a step. A step without a point had no traffic. */
export class Chart {
  constructor({ step_s: step = EMPTY_STEP_S, until = 0, up = [], down = [], users = [] } = {}) {
    this.step = step > 0 ? step : EMPTY_STEP_S;
    this.until = until;
    this.points = down.slice(-MAX_POINTS).map((each, i) => ({ up: up[i] ?? 0, down: each, users: users[i] ?? 0 }));
  }

  add(point, at) {
    if (at - this.until < this.step / 2) {
      this.points.pop(); // a better figure for the step that was added last
      this.points.push(point);
      return;
    }
    this.#moveTo(at - this.step);
    this.points.push(point);
    if (this.points.length > MAX_POINTS) this.points.shift();
    this.until = at;
  }

  /** The points up to now, oldest first and always as many: what is missing at the front or since is zero. */
  upTo(now) {
    this.#moveTo(now - this.step); // the present step is not over yet
    const missing = MAX_POINTS - this.points.length;
    return [...Array.from({ length: missing }, () => NOTHING), ...this.points];
  }

  #moveTo(at) {
    const steps = Math.floor((at - this.until) / this.step + 0.5);
    if (steps <= 0) return;
    for (let i = 0; i < Math.min(steps, MAX_POINTS); i++) this.points.push(NOTHING);
    this.points.splice(0, this.points.length - MAX_POINTS);
    this.until += steps * this.step;
  }

  get seconds() {
    return MAX_POINTS * this.step;
  }
}

const NOTHING = { up: 0, down: 0, users: 0 };

export class Model {
  server = {};
  clients = new Map(); // by id
  proxies = new Map(); // by id
  events = []; // newest first
  #eventTexts = new Set();
  #heard = 0; // when `server.now` was heard, on this browser's clock

  /** The server's time in seconds: a browser's clock may be wrong. */
  get now() {
    return (this.server.now ?? 0) + (this.server.now ? (performance.now() - this.#heard) / 1000 : 0);
  }

  /** Takes in one `state` of the stream. The first one of a stream replaces all that is known. */
  apply(state, isFirst) {
    if (isFirst) {
      this.clients.clear();
      this.proxies.clear();
    }
    if (state.server) {
      Object.assign(this.server, state.server);
      this.#heard = performance.now();
    }
    for (const client of state.clients ?? []) this.#merge(this.clients, client);
    for (const proxy of state.proxies ?? []) this.#mergeProxy(proxy);
    for (const id of state.removed ?? []) {
      this.clients.delete(id);
      this.proxies.delete(id);
    }
  }

  #merge(known, item) {
    known.set(item.id, Object.assign(known.get(item.id) ?? {}, item));
  }

  #mergeProxy({ chart, point, ...proxy }) {
    this.#merge(this.proxies, proxy);
    const known = this.proxies.get(proxy.id);
    if (chart || !known.chart) known.chart = new Chart(chart ?? { until: this.server.now });
    if (point) known.chart.add(point, this.server.now);
  }

  /** Takes in one event. Every stream begins with the last ones again, so one that is known is left out. */
  happened(event, text) {
    if (this.#eventTexts.has(text)) return;
    this.#eventTexts.add(text);
    this.events.unshift({ ...event, id: text });
    if (this.events.length > MAX_EVENTS) this.#eventTexts.delete(this.events.pop().id);
  }

  clientOf(proxy) {
    return this.clients.get(proxy.client);
  }

  /** The rates of all proxies together. */
  totalChart() {
    const total = new Chart({ until: this.now });
    total.points = total.upTo(this.now).map((point) => ({ ...point }));
    for (const proxy of this.proxies.values()) {
      proxy.chart.upTo(this.now).forEach((point, i) => {
        total.points[i].up += point.up;
        total.points[i].down += point.down;
      });
    }
    return total;
  }
}
