"use strict";
// The page of attention maps. All text reaches the document through textContent, never as markup.
const data = JSON.parse(document.getElementById("regard-data").textContent);
const STEPS = data.steps;
const choice = { unit: "words", layer: "", head: "" };
const SVG = "http://www.w3.org/2000/svg";

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function mean(matrices) {
  return matrices[0].map((row, q) => row.map((_, k) => matrices.reduce((sum, m) => sum + m[q][k], 0) / matrices.length));
}

// A layer's weights of the chosen head, by its number in the model; undefined where it was not observed.
function chosenHead(record, name) {
  const place = record.heads && record.heads[name] ? record.heads[name].indexOf(Number(choice.head)) : Number(choice.head);
  return record.layers[name][place];
}

// Weights [target][source] of the chosen layer and head over tokens; a record without that choice shows its mean.
function tokenWeights(record) {
  const names = choice.layer in record.layers ? [choice.layer] : Object.keys(record.layers);
  return mean(names.map((name) => {
    return (choice.head !== "" && chosenHead(record, name)) || mean(record.layers[name]);
  }));
}

function lacks(record) {
  if (choice.layer !== "" && !(choice.layer in record.layers)) return true;
  const names = choice.layer !== "" ? [choice.layer] : Object.keys(record.layers);
  return choice.head !== "" && names.some((name) => !chosenHead(record, name));
}

// A word's column is the sum over its source tokens, its row the mean over its target tokens.
function wordWeights(record, weights) {
  const rows = record.target_units.map(() => record.source_units.map(() => 0));
  const counts = record.target_units.map(() => 0);
  weights.forEach((row, q) => {
    const word = record.target_owner[q];
    counts[word] += 1;
    row.forEach((weight, k) => { rows[word][record.source_owner[k]] += weight; });
  });
  return rows.map((row, word) => row.map((sum) => sum / counts[word]));
}

function unitsOf(record, side) {
  if (choice.unit === "words") return record[side + "_units"];
  return record[side + "_tokens"].map((label, place) => [label, ...record[side + "_spans"][place]]);
}

function expectedPlaces(record) {
  if (choice.unit === "words" || !record.expected) return record.expected || [];
  const places = [];
  record.expected.forEach(([q, k]) => {
    record.target_owner.forEach((word, row) => {
      if (word === q) record.source_owner.forEach((other, column) => { if (other === k) places.push([row, column]); });
    });
  });
  return places;
}

const step = (weight, top) => "s" + (top > 0 ? Math.round(Math.min(weight / top, 1) * STEPS) : 0);
const figure = (weight) => weight.toFixed(weight >= 0.005 ? 2 : 4);

class View {
  constructor(article, record, place) {
    this.article = article;
    this.record = record;
    this.place = place;
    this.lines = { source: article.querySelector(".source .text"), target: article.querySelector(".target .text") };
    this.said = article.querySelector(".said");
    this.scroll = article.querySelector(".scroll");
    this.key = article.querySelector(".key");
    this.ribbons = article.querySelector(".ribbons");
    this.stage = article.querySelector(".stage");
    this.pinned = null;
    this.tabled = false;
    new ResizeObserver(() => this.drawRibbons()).observe(this.stage);
    this.stage.addEventListener("pointerleave", () => this.show(this.pinned));
    this.stage.addEventListener("focusout", (event) => {
      if (!this.stage.contains(event.relatedTarget)) this.show(this.pinned);
    });
    this.stage.addEventListener("keydown", (event) => this.move(event));
  }

  update() {
    const { record } = this;
    const tokens = tokenWeights(record);
    this.weights = choice.unit === "words" ? wordWeights(record, tokens) : tokens;
    this.top = this.weights.reduce((top, row) => row.reduce((a, b) => Math.max(a, b), top), 0);
    this.expected = new Set(expectedPlaces(record).map(([q, k]) => q + " " + k));
    this.pinned = null;
    this.buttons = {};
    this.stage.classList.toggle("tokens", choice.unit === "tokens");
    for (const side of ["source", "target"]) this.fillLine(side);
    this.size = this.buttons.source.length > 34 ? "tiny" : this.buttons.source.length > 14 ? "small" : "";
    this.article.querySelector(".body").classList.toggle("wide", this.size !== "");
    if (this.tabled) this.drawTable();
    this.show(null);
  }

  // The text again, with a button for each word; what lies between words stays plain text.
  fillLine(side) {
    const text = this.record[side];
    const characters = Array.from(text); // spans count characters, JavaScript's own indices count UTF-16 units
    const line = this.lines[side];
    line.textContent = "";
    let reached = 0;
    this.buttons[side] = unitsOf(this.record, side).map(([label, begin, end], place) => {
      const special = begin === end || begin < reached;
      let shown = special ? label : characters.slice(begin, end).join("");
      if (!special) {
        const inner = shown.trimStart();
        line.append(characters.slice(reached, begin).join("") + shown.slice(0, shown.length - inner.length));
        shown = inner || "\u2423";
        reached = end;
      } else if (begin === end && begin > reached) {
        line.append(characters.slice(reached, begin).join(""));
        reached = begin;
      }
      const button = make("button", { type: "button", className: "unit", textContent: shown, tabIndex: place ? -1 : 0 });
      button.classList.toggle("special", special);
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") this.show([side, place]); });
      button.addEventListener("focus", () => this.show([side, place]));
      button.addEventListener("click", () => this.pin([side, place]));
      line.append(button);
      return button;
    });
    line.append(characters.slice(reached).join(""));
  }

  weight(side, place, other) {
    return side === "target" ? this.weights[place][other] : this.weights[other][place];
  }

  isExpected(side, place, other) {
    return this.expected.has(side === "target" ? place + " " + other : other + " " + place);
  }

  // A pinned word stays shown until it or another one is pressed, or Escape is.
  pin(what) {
    const same = this.pinned && what && this.pinned[0] === what[0] && this.pinned[1] === what[1];
    this.pinned = same ? null : what;
    for (const side of ["source", "target"]) {
      this.buttons[side].forEach((button, place) => {
        const pressed = this.pinned !== null && side === this.pinned[0] && place === this.pinned[1];
        button.setAttribute("aria-pressed", String(pressed));
      });
    }
    this.show(what);
  }

  // Arrow keys: along a line, or over to the other one. Escape forgets the pinned word.
  move(event) {
    if (event.key === "Escape") { this.pin(null); return; }
    const side = ["source", "target"].find((one) => this.buttons[one].includes(event.target));
    if (!side) return;
    const place = this.buttons[side].indexOf(event.target);
    const backwards = getComputedStyle(this.lines[side]).direction === "rtl" ? -1 : 1;
    let goal = null;
    if (event.key === "ArrowRight") goal = this.buttons[side][place + backwards];
    else if (event.key === "ArrowLeft") goal = this.buttons[side][place - backwards];
    else if (event.key === "Home") goal = this.buttons[side][0];
    else if (event.key === "End") goal = this.buttons[side].at(-1);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const other = side === "source" ? "target" : "source";
      goal = this.buttons[other][this.ranked(side, place)[0]?.[0] ?? 0];
    } else return;
    event.preventDefault();
    if (!goal) return;
    for (const one of this.buttons[side].includes(goal) ? this.buttons[side] : []) one.tabIndex = -1;
    goal.tabIndex = 0;
    goal.focus();
  }

  ranked(side, place) {
    const other = side === "target" ? "source" : "target";
    return this.buttons[other].map((_, k) => [k, this.weight(side, place, k)]).sort((a, b) => b[1] - a[1]);
  }

  // Colours the other side by the weights of one word; none: back to rest.
  show(what) {
    this.active = what;
    const [side, place] = what || ["", -1];
    for (const one of ["source", "target"]) {
      this.buttons[one].forEach((button, k) => {
        button.className = button.classList.contains("special") ? "unit special" : "unit";
        if (one === side) button.classList.toggle("active", k === place);
        else if (what) {
          const weight = this.weight(side, place, k);
          if (weight > 0.02 * this.top) button.classList.add(step(weight, this.top));
          button.classList.toggle("expected", this.isExpected(side, place, k));
        }
      });
    }
    this.say(side, place);
    this.drawRibbons();
    this.markTable(what);
  }

  say(side, place) {
    this.said.textContent = "";
    this.said.classList.toggle("idle", !side);
    if (!side) {
      if (lacks(this.record)) {
        this.said.append(make("span", { className: "aside", textContent: "Not observed here: the mean is shown. " }));
      }
      this.said.append("Point at a word, tap it, or move with Tab and the arrow keys.");
      return;
    }
    const other = side === "target" ? "source" : "target";
    this.said.append(make("b", { textContent: this.buttons[side][place].textContent }));
    this.said.append(side === "target" ? " looked at " : " was looked at by ");
    const shown = this.ranked(side, place).filter(([, weight]) => weight >= 0.005).slice(0, 5);
    shown.forEach(([k, weight], rank) => {
      const words = make("span", {}, make("b", { textContent: this.buttons[other][k].textContent }), " " + figure(weight));
      this.said.append(rank ? ", " : "", words);
    });
    if (!shown.length) this.said.append("nothing");
  }

  // Curves between the two lines; only where each fits on one line, since otherwise they would cross the text.
  drawRibbons() {
    if (!this.buttons) return;
    const single = ["source", "target"].every((side) => {
      const tops = this.buttons[side].map((button) => button.getBoundingClientRect());
      return tops.length > 0 && tops.every((box) => Math.abs(box.top + box.bottom - tops[0].top - tops[0].bottom) < 16);
    });
    this.stage.classList.toggle("ribboned", single);
    this.ribbons.textContent = "";
    if (!single) return;
    const origin = this.stage.getBoundingClientRect();
    const ends = {};
    for (const side of ["source", "target"]) {
      const boxes = this.buttons[side].map((button) => button.getBoundingClientRect());
      const y = side === "source" ? Math.max(...boxes.map((box) => box.bottom)) : Math.min(...boxes.map((box) => box.top));
      ends[side] = boxes.map((box) => [box.left + box.width / 2 - origin.left, y - origin.top]);
    }
    this.weights.forEach((row, q) => row.forEach((weight, k) => {
      const share = this.top > 0 ? weight / this.top : 0;
      if (share < 0.04) return;
      const mine = !this.active || this.active[1] === (this.active[0] === "target" ? q : k);
      const [x1, y1] = ends.source[k];
      const [x2, y2] = ends.target[q];
      const bend = (y1 + y2) / 2;
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", `M${x1} ${y1}C${x1} ${bend} ${x2} ${bend} ${x2} ${y2}`);
      path.setAttribute("stroke-width", String(0.8 + 6 * share));
      path.setAttribute("stroke-opacity", String(mine ? (this.active ? 0.25 + 0.7 * share : 0.7 * share) : 0.05 * share));
      this.ribbons.append(path);
    }));
  }

  drawTable() {
    this.tabled = true;
    const { source, target } = this.buttons;
    const table = make("table", { className: "map " + this.size });
    const caption = make("caption", { className: "hidden" });
    caption.textContent = "Attention weights: a row for each target word, a column for each source word";
    const corner = make("td", {}, make("span", { className: "hidden", textContent: "target \\ source" }));
    const head = make("tr", {}, corner);
    source.forEach((button) => {
      const th = make("th", { scope: "col", title: button.textContent }, make("div", { textContent: button.textContent }));
      th.classList.toggle("special", button.classList.contains("special"));
      head.append(th);
    });
    const body = make("tbody");
    target.forEach((button, q) => {
      const name = make("th", { scope: "row", textContent: button.textContent, title: button.textContent, dir: "auto" });
      name.classList.toggle("special", button.classList.contains("special"));
      const row = make("tr", {}, name);
      this.weights[q].forEach((weight, k) => {
        const cell = make("td", { className: step(weight, this.top), textContent: weight < 0.005 ? "" : weight.toFixed(2) });
        cell.title = `${button.textContent} \u2190 ${source[k].textContent}: ${weight.toFixed(4)}`;
        if (this.expected.has(q + " " + k)) {
          cell.classList.add("expected");
          cell.title += " (expected)";
        }
        row.append(cell);
      });
      body.append(row);
    });
    body.addEventListener("pointerover", (event) => {
      const cell = event.target.closest("td");
      if (cell && event.pointerType === "mouse") this.show(["target", cell.parentNode.rowIndex - 1]);
    });
    body.addEventListener("pointerleave", () => this.show(this.pinned));
    table.append(caption, make("thead", {}, head), body);
    this.scroll.replaceChildren(table);
    this.table = table;
    this.drawKey();
    this.markTable(this.active);
  }

  drawKey() {
    const bar = make("span", { className: "bar" });
    for (let k = 0; k <= STEPS; k += 4) bar.append(make("i", { className: "s" + k }));
    bar.setAttribute("aria-hidden", "true");
    this.key.replaceChildren("attention weight 0", bar, figure(this.top));
    if (this.expected.size) this.key.append(make("span", {}, make("i", { className: "ring" }), "expected"));
  }

  markTable(what) {
    if (!this.table) return;
    this.table.querySelectorAll("th.active").forEach((th) => th.classList.remove("active"));
    if (!what) return;
    const [side, place] = what;
    const heads = this.table.querySelectorAll(side === "target" ? "tbody th" : "thead th");
    heads[place]?.classList.add("active");
  }
}

// A record without words has no entry here: its charts are in the page.
const views = data.records.map((record) => new View(document.getElementById("record-" + record.place), record, record.place));

function fill(select, options) {
  for (const [value, label] of options) select.append(make("option", { value, textContent: label }));
}

// The choosers offer what any of the records has.
const layers = [...new Set(data.records.flatMap((record) => Object.keys(record.layers)))];
const heads = [...new Set(data.records.flatMap((record) => Object.entries(record.layers).flatMap(
  ([name, one]) => (record.heads && record.heads[name]) || one.map((_, head) => head))))].sort((a, b) => a - b);
const tools = document.querySelector(".tools");
fill(tools.querySelector("[name=unit]"), [["words", "words"], ["tokens", "tokens"]]);
fill(tools.querySelector("[name=layer]"), [["", "mean of all"], ...layers.map((name) => [name, name])]);
const numbered = heads.map((head) => [String(head), "head " + head]);
fill(tools.querySelector("[name=head]"), [["", "mean of all"], ...numbered]);
for (const select of tools.querySelectorAll("select")) {
  choice[select.name] = select.value; // the browser may have kept an earlier choice
  select.addEventListener("change", () => {
    choice[select.name] = select.value;
    views.forEach((view) => view.update());
  });
}
tools.hidden = views.length === 0;
views.forEach((view) => view.update());

// A heat map is built when it comes near the screen, so that a page of many sentences opens at once.
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const view = views.find((one) => one.scroll === entry.target);
    if (entry.isIntersecting && !view.tabled) view.drawTable();
  }
}, { rootMargin: "600px" });
views.forEach((view) => nearby.observe(view.scroll));
addEventListener("beforeprint", () => views.forEach((view) => view.tabled || view.drawTable()));
