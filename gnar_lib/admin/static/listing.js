// A table with a filter, an order and pages. Shows only the rows of one page, however many items there are.

import { announce } from "./messages.js";
import { Children, make, setAttribute, setText } from "./dom.js";
import { count } from "./format.js";

const REORDER_MS = 3000; // rows that change places all the time cannot be read
const TYPING_MS = 250;
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/**
 * `columns`: each has `key`, `title`, `build(cell)` that returns a function of the item that renews the cell, and
 * if it can be sorted by, `value(item)` and perhaps `descending` (the largest first).
 * `text(item)`: what the filter searches. `isLast(item)`: always behind the others.
 * `isSteady`: what is sorted by changes so little that rows need not keep their places for a while.
 * `onQuery(query)`: if the server filters, sorts and pages, what is called when the query has changed.
 */
export class Listing {
  #options;
  #order = []; // ids, as shown last
  #arranged = 0; // when that order was made
  #offset = 0;
  #matched = 0;
  #sort;
  #descending;
  #again = () => {};
  #typing = 0;

  constructor(section, options) {
    this.#options = options;
    this.#sort = options.columns.find((column) => column.key === options.sort);
    this.#descending = this.#sort.descending ?? false;
    this.#makeControls(section);
    this.#makeTable(section);
    this.#makePager(section);
    this.#markSort();
  }

  /** What the server needs to know to send what this listing shows. */
  get query() {
    return {
      filter: this.filter.value.trim(),
      sort: this.#sort.key,
      order: this.#descending ? "desc" : "asc",
      limit: this.#options.pageSize,
      offset: this.#offset,
    };
  }

  /** Shows the items; of a server that filters itself also how many it has (`matched`, `total`). */
  show(items, { matched, total } = {}) {
    this.#again = () => this.show(items, { matched, total });
    const isRemote = this.#options.onQuery !== undefined;
    let found = isRemote ? items : this.#find(items);
    this.#matched = isRemote ? matched : found.length;
    found = this.#arrange(found, isRemote);
    if (!isRemote) {
      this.#offset = Math.min(this.#offset, this.#lastOffset());
      found = found.slice(this.#offset, this.#offset + this.#options.pageSize);
    }
    this.rows.show(found);
    this.#showCounts(found.length, isRemote ? total : items.length);
  }

  #find(items) {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length === 0) return items;
    return items.filter((item) => {
      const text = this.#options.text(item).toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  // Rows keep their places for some seconds, and for as long as a person points at one or works in it by keyboard.
  #arrange(items, isSorted) {
    const isPointedAt = matchMedia("(hover: hover)").matches && this.body.matches(":hover");
    const isHeld = isPointedAt || this.body.matches(":focus-within");
    if (!this.#options.isSteady && this.#order.length > 0 && (isHeld || performance.now() - this.#arranged < REORDER_MS)) {
      const places = new Map(this.#order.map((id, place) => [id, place]));
      items = items.map((item, i) => [places.get(item.id) ?? places.size + i, item]);
      items = items.sort((a, b) => a[0] - b[0]).map(([, item]) => item);
    } else {
      if (!isSorted) items = this.#sorted(items);
      this.#arranged = performance.now();
    }
    this.#order = items.map((item) => item.id);
    return items;
  }

  #sorted(items) {
    const { isLast = () => false } = this.#options;
    const sign = this.#descending ? -1 : 1;
    const keyed = items.map((item) => ({ item, last: Number(isLast(item)), value: this.#sort.value(item) }));
    keyed.sort((a, b) => a.last - b.last || sign * compare(a.value, b.value) || collator.compare(a.item.id, b.item.id));
    return keyed.map(({ item }) => item);
  }

  #lastOffset() {
    const { pageSize } = this.#options;
    return Math.max(0, Math.ceil(this.#matched / pageSize) - 1) * pageSize;
  }

  #showCounts(shown, total) {
    const { nouns, empty, pageSize } = this.#options;
    const [one, many] = nouns;
    const all = `${count(total)} ${total === 1 ? one : many}`;
    setText(this.counter, this.#matched < total ? `${count(this.#matched)} of ${all}` : all);
    this.table.hidden = shown === 0;
    this.nothing.hidden = shown > 0;
    setText(this.nothing, total > 0 ? `None of the ${many} matches the filter.` : empty);
    this.pager.hidden = this.#matched <= pageSize && this.#offset === 0;
    const first = Math.min(this.#offset + 1, this.#matched);
    setText(this.range, `${count(first)} to ${count(this.#offset + shown)} of ${count(this.#matched)}`);
    setAttribute(this.previous, "aria-disabled", this.#offset === 0 && "true");
    setAttribute(this.next, "aria-disabled", this.#offset >= this.#lastOffset() && "true");
  }

  // What follows a person's wish: show it at once, or have the server send it.
  #changed() {
    this.#arranged = 0;
    this.#order = [];
    if (this.#options.onQuery) this.#options.onQuery(this.query);
    else this.#again();
  }

  #filterChanged() {
    clearTimeout(this.#typing);
    this.#typing = setTimeout(() => {
      this.#offset = 0;
      this.#changed();
      if (!this.#options.onQuery) announce(`${count(this.#matched)} ${this.#options.nouns[1]} match`);
    }, TYPING_MS);
  }

  #sortBy(column, descending) {
    this.#sort = column;
    this.#descending = descending;
    this.#offset = 0;
    this.#markSort();
    this.#changed();
  }

  #turnPage(by) {
    const offset = this.#offset + by * this.#options.pageSize;
    if (offset < 0 || offset > this.#lastOffset()) return;
    this.#offset = offset;
    this.#changed();
    this.table.scrollIntoView({ block: "nearest" });
  }

  #markSort() {
    for (const { column, head } of this.heads) {
      const order = this.#descending ? "descending" : "ascending";
      setAttribute(head, "aria-sort", column === this.#sort && order);
    }
    this.choice.value = this.#sort.key;
    setText(this.direction, this.#descending ? "↓" : "↑");
    this.direction.setAttribute("aria-label", `Order: ${this.#descending ? "falling" : "rising"}. Turn round`);
  }

  // ---- the elements ----------------------------------------------------------------------------------------

  #makeControls(section) {
    const { nouns, columns } = this.#options;
    this.filter = make("input", {
      ...{ type: "search", class: "filter", placeholder: "Filter", "aria-label": `Filter the ${nouns[1]}`, maxlength: 100 },
      ...{ autocomplete: "off", spellcheck: "false", oninput: () => this.#filterChanged() },
    });
    const choose = () => {
      const column = columns.find(({ key }) => key === this.choice.value);
      this.#sortBy(column, column.descending ?? false);
    };
    const sortable = columns.filter((column) => column.value);
    const choices = sortable.map(({ key, title }) => make("option", { value: key }, title));
    this.choice = make("select", { "aria-label": `Sort the ${nouns[1]} by`, onchange: choose }, ...choices);
    this.direction = make("button", { type: "button", onclick: () => this.#sortBy(this.#sort, !this.#descending) });
    this.counter = make("p", { class: "counter" });
    const order = make("div", { class: "order" }, this.choice, this.direction);
    section.querySelector(".controls").append(this.counter, this.filter, order);
  }

  #makeTable(section) {
    const { columns, nouns } = this.#options;
    this.heads = columns.map((column) => ({ column, head: this.#makeHead(column) }));
    const heads = make("tr", { role: "row" }, ...this.heads.map(({ head }) => head));
    this.body = make("tbody", { role: "rowgroup" });
    this.table = make(
      "table",
      { role: "table", "aria-label": nouns[1], tabindex: -1, hidden: true },
      ...[make("thead", { role: "rowgroup" }, heads), this.body],
    );
    this.nothing = make("p", { class: "nothing" }, "");
    section.append(this.table, this.nothing);
    this.rows = new Children(this.body, (item) => this.#makeRow(item));
  }

  #makeHead(column) {
    const head = make("th", { role: "columnheader", scope: "col", class: column.key, title: column.explanation });
    if (!column.value) {
      head.append(make("span", { class: column.isTitleHidden ? "unseen" : null }, column.title));
      return head;
    }
    const turn = () => this.#sortBy(column, column === this.#sort ? !this.#descending : (column.descending ?? false));
    head.append(make("button", { type: "button", class: "sort", onclick: turn }, column.title));
    return head;
  }

  #makeRow() {
    const row = make("tr", { role: "row" });
    const renewals = this.#options.columns.map((column) => {
      const cell = make("td", { role: "cell", class: column.key, "data-title": column.title });
      row.append(cell);
      return column.build(cell);
    });
    const renew = (item) => {
      setAttribute(row, "data-state", item.state);
      for (const each of renewals) each(item);
    };
    return [row, renew];
  }

  #makePager(section) {
    const button = (text, by) => make("button", { type: "button", onclick: () => this.#turnPage(by) }, text);
    this.previous = button("Previous", -1);
    this.next = button("Next", 1);
    this.range = make("span", {}, "");
    const label = `Pages of ${this.#options.nouns[1]}`;
    this.pager = make("nav", { class: "pager", "aria-label": label, hidden: true }, this.previous, this.range, this.next);
    section.append(this.pager);
  }
}

function compare(a, b) {
  return typeof a === "string" ? collator.compare(a, b) : a - b;
}
