// Draws a chart of rates as SVG, with its figures in words for who cannot see it.

import { make, makeSvg, setAttribute, setText } from "./dom.js";
import { rate, roughAge } from "./format.js";

const WIDTH = 240;
const HEIGHT = 60;
const TOP = 2; // the line of the highest rate is not cut in half
const LEAST_SCALE = 1000; // bytes per second: less than that looks like little

export class Graph {
  #svg;
  #area = makeSvg("path", { class: "down area" });
  #down = makeSvg("path", { class: "down line" });
  #up = makeSvg("path", { class: "up line" });

  constructor() {
    const baseline = makeSvg("path", { class: "baseline", d: `M0,${HEIGHT}H${WIDTH}` });
    this.#svg = makeSvg(
      "svg",
      { class: "graph", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "No traffic" },
      ...[baseline, this.#area, this.#down, this.#up],
    );
  }

  get element() {
    return this.#svg;
  }

  /** Draws a chart up to `now`, and returns the rate at the upper edge. */
  show(chart, now) {
    const points = chart.upTo(now);
    const peak = { down: 0, up: 0 };
    for (const point of points) {
      peak.down = Math.max(peak.down, point.down);
      peak.up = Math.max(peak.up, point.up);
    }
    const top = roundUp(Math.max(peak.down, peak.up, LEAST_SCALE));
    const down = peak.down > 0 ? path(points, "down", top) : "";
    setAttribute(this.#down, "d", down);
    setAttribute(this.#area, "d", down && `${down}V${HEIGHT}H0Z`);
    setAttribute(this.#up, "d", peak.up > 0 ? path(points, "up", top) : "");
    setAttribute(this.#svg, "aria-label", inWords(points.at(-1), peak, chart.seconds));
    return top;
  }
}

function path(points, direction, top) {
  const step = WIDTH / (points.length - 1);
  const y = (value) => (HEIGHT - (value / top) * (HEIGHT - TOP)).toFixed(1);
  return "M" + points.map((point, i) => `${(i * step).toFixed(1)},${y(point[direction])}`).join("L");
}

/** The next number of few digits, so that the scale can be read and little room is left above. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * power >= value);
}

function inWords(last, peak, seconds) {
  const span = `Last ${roughAge(seconds)}`;
  if (peak.down === 0 && peak.up === 0) return `${span}: no traffic`;
  const part = (direction) => `${direction} ${rate(last[direction])}, at most ${rate(peak[direction])}`;
  return `${span}: ${part("down")}; ${part("up")}`;
}

/** A large graph with a scale. */
export class LargeGraph {
  #graph = new Graph();
  #labels = { top: make("span", { class: "top" }), middle: make("span", { class: "middle" }), start: make("span", { class: "start" }) };

  constructor(place) {
    const { top, middle, start } = this.#labels;
    const scale = make("div", { class: "scale", "aria-hidden": "true" }, top, middle, start, make("span", { class: "end" }, "now"));
    place.classList.add("large-graph");
    place.replaceChildren(scale, this.#graph.element);
  }

  show(chart, now) {
    const top = this.#graph.show(chart, now);
    setAttribute(this.#labels.top, "data-text", rate(top));
    setAttribute(this.#labels.middle, "data-text", rate(top / 2));
    setText(this.#labels.start, `${roughAge(chart.seconds)} ago`);
  }
}
