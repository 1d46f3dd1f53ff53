// The grid of Rate Images: every new picture with thumbs. The node remembers which pictures it shows; what is rated is
// asked of the server, so it is right after a reload, and when somebody else rates the same session.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const NODE = "AtelierRateImages";
const HEIGHT = 260;
const TEXT_HEIGHT = 60;
const SMALLEST = 110;
const BAR = 28;
const EMPTY = "Queue the workflow. The new pictures come here.";
const SHOWN = "atelier_pictures";
const THUMB = "M3 11h4v9H3zM7 12l4-8c2 0 2.6 1.3 2.3 2.8L12.7 10H19c1.4 0 2.2 1.1 2 2.3l-1.200 6c-.2 1-1 1.7-2 1.7H7";
const VERDICTS = [
  { value: 1, sign: THUMB, name: "Like", keys: ["ArrowUp", "+"], hint: "↑ or +" },
  { value: -1, sign: THUMB, name: "Dislike", keys: ["ArrowDown", "-"], hint: "↓ or -" },
  {
    value: 0,
    sign: "M8 4 4 8l4 4M4 8h10a5.5 5.5 0 0 1 0 11h-4",
    name: "Take back the rating of",
    keys: ["Backspace", "Delete"],
    hint: "Backspace",
  },
];

class RatingGrid {
  constructor(node) {
    this.node = node;
    this.pictures = [];
    this.asked = 0;
    this.saving = Promise.resolve();
    this.root = element("div", "atelier-rate");
    this.grid = element("div", "atelier-rate-grid");
    this.grid.setAttribute("role", "list");
    this.status = element("div", "atelier-rate-status");
    this.status.setAttribute("role", "status");
    this.root.append(this.grid, this.status);
    // The canvas takes keys and drags for itself otherwise.
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("pointerdown", (event) => event.stopPropagation());
    new ResizeObserver(() => this.arrange()).observe(this.grid);
    this.say(EMPTY);
  }

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  /** Show these pictures. Where there are none, or the server knows none of them, the newest batch of the session. */
  async load(keys = []) {
    const mine = ++this.asked;
    const named = [...new Set(keys)].slice(0, 100).map((key) => ["image", key]);
    const session = [["session", String(this.widget("session")?.value ?? "")]];
    try {
      let pictures = named.length ? await picturesOf(named) : [];
      if (!pictures.length) {
        pictures = await picturesOf(session);
        pictures = pictures.filter((picture) => picture.created === pictures[0].created);
      }
      if (mine === this.asked) this.show(pictures);
    } catch (error) {
      if (mine === this.asked) this.say(error.message, true);
    }
  }

  show(pictures) {
    this.pictures = pictures;
    this.grid.replaceChildren(...pictures.map((picture, index) => this.card(picture, index)));
    this.arrange();
    if (pictures.length) this.count();
    else this.say(EMPTY);
  }

  /** As many columns as make the pictures largest. */
  arrange() {
    const { clientWidth: width, clientHeight: height } = this.grid;
    const count = this.pictures.length;
    const image = this.grid.querySelector("img");
    const ratio = image?.naturalHeight ? image.naturalWidth / image.naturalHeight : 1;
    let best = { columns: 1, size: 0 };
    for (let columns = 1; columns <= count && width / columns >= SMALLEST; columns++) {
      const high = height / Math.ceil(count / columns);
      const size = Math.min(width / columns, (Math.max(high, SMALLEST) - BAR) * ratio);
      // Of columns that are all too long, the shortest.
      if (size > best.size || (size === best.size && high < SMALLEST)) best = { columns, size };
    }
    this.grid.style.setProperty("--atelier-columns", best.columns);
    // With the focus inside, the wheel scrolls the pictures, if they do not all fit; else it zooms the canvas.
    this.root.dataset.captureWheel = String(this.grid.scrollHeight > this.grid.clientHeight);
  }

  card(picture, index) {
    const card = element("div", "atelier-rate-card");
    card.dataset.image = picture.image;
    card.setAttribute("role", "listitem");
    card.tabIndex = 0;
    if (picture.file) {
      const image = element("img");
      image.src = api.apiURL(`/view?${new URLSearchParams(picture.file)}`);
      image.alt = picture.prompt || `Picture ${index + 1}`;
      image.draggable = false;
      image.addEventListener("load", () => this.arrange());
      card.append(image);
    } else {
      card.append(element("div", "atelier-rate-gone", "This picture is gone. Queue again to make it anew."));
    }
    const bar = element("div", "atelier-rate-bar");
    for (const verdict of VERDICTS) {
      const button = element("button");
      button.append(icon(verdict.sign));
      button.type = "button";
      button.dataset.value = verdict.value;
      button.title = `${verdict.name} picture ${index + 1} (${verdict.hint})`;
      button.setAttribute("aria-label", `${verdict.name} picture ${index + 1}`);
      button.addEventListener("click", () => this.rate(picture.image, verdict.value));
      bar.append(button);
    }
    card.append(bar);
    mark(card, picture, index);
    return card;
  }

  /** Ratings are saved one after the other, so that of two quick clicks the last one counts. */
  rate(image, value) {
    this.saving = this.saving.then(() => this.save(image, value));
  }

  async save(image, value) {
    const strength = Number(this.widget("strength")?.value ?? 1);
    const body = value ? { image, value, strength } : { image, value };
    try {
      const rated = await request("/atelier/ratings", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      this.update(rated);
    } catch (error) {
      this.say(error.message, true);
    }
  }

  /** A rating was saved, here or in another browser. */
  update(rated) {
    const index = this.pictures.findIndex((picture) => picture.image === rated.image);
    if (index < 0) return;
    this.pictures[index] = rated;
    mark(this.grid.children[index], rated, index);
    this.count();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the front end's own, such as queue
    const cards = [...this.grid.children];
    const at = cards.findIndex((card) => card.contains(document.activeElement));
    event.stopPropagation();
    if (at < 0) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const verdict = VERDICTS.find(({ keys }) => keys.includes(event.key));
    if (!step && !verdict) return;
    event.preventDefault();
    if (step) cards[(at + step + cards.length) % cards.length].focus();
    else this.rate(this.pictures[at].image, verdict.value);
  }

  count() {
    const of = (value) => this.pictures.filter((picture) => picture.value === value).length;
    this.say(`${of(1)} liked, ${of(-1)} disliked of ${this.pictures.length}`);
  }

  say(text, isError = false) {
    this.status.textContent = text;
    this.status.classList.toggle("atelier-rate-error", isError);
  }
}

function mark(card, picture, index) {
  card.dataset.value = picture.value;
  const verdict = { 1: "liked", "-1": "disliked", 0: "not rated" }[picture.value];
  const strength = picture.value && picture.strength < 1 ? `, strength ${picture.strength}` : "";
  card.setAttribute("aria-label", `Picture ${index + 1}, ${verdict}${strength}`);
  for (const button of card.querySelectorAll("button")) {
    const value = Number(button.dataset.value);
    if (value) button.setAttribute("aria-pressed", String(value === picture.value));
    else button.disabled = picture.value === 0;
  }
}

function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

function icon(path) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  drawing.append(line);
  return drawing;
}

async function picturesOf(query) {
  return (await request(`/atelier/pictures?${new URLSearchParams(query)}`)).pictures;
}

async function request(path, options) {
  let answer, body;
  try {
    answer = await api.fetchApi(path, options);
    body = await answer.json();
  } catch {
    throw new Error("The server does not answer. Ratings are not saved until it does.");
  }
  if (!answer.ok) throw new Error(body.error ?? `The server answered ${answer.status}.`);
  return body;
}

const grids = new Set();

app.registerExtension({
  name: "Atelier.RateImages",

  setup() {
    const sheet = element("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./rate_images.css", import.meta.url).href;
    document.head.append(sheet);
    api.addEventListener("atelier.rated", ({ detail }) => grids.forEach((grid) => grid.update(detail)));
    // After a lost connection, ratings of others may have been missed.
    api.addEventListener("reconnected", () =>
      grids.forEach((grid) => grid.pictures.length && grid.load(grid.pictures.map(({ image }) => image))),
    );
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const grid = new RatingGrid(node);
    grids.add(grid);
    // The grid shows the pictures: no previews of Vue nodes, and none that the canvas draws.
    node.hideOutputImages = true;
    node.onDrawBackground = () => {};
    const widget = node.addDOMWidget("pictures", "atelier-rate", grid.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
    });
    widget.serialize = false;
    // The texts are for scripts; the room is for the pictures.
    for (const name of ["ratings", "prompt"]) {
      const text = grid.widget(name);
      if (text?.options) text.options.getMaxHeight = () => TEXT_HEIGHT;
    }
    node.setSize([Math.max(node.size[0], 380), Math.max(node.size[1], 480)]);

    const { onExecuted, onRemoved } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (!output?.atelier_pictures) return;
      this.properties[SHOWN] = output.atelier_pictures;
      // The front end keeps the graph for a reload when it takes note of a change.
      app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();
      grid.load(output.atelier_pictures);
    };
    node.onRemoved = function () {
      grids.delete(grid);
      onRemoved?.apply(this, arguments);
    };
    const session = grid.widget("session");
    if (session) {
      const { callback } = session;
      session.callback = function () {
        const answer = callback?.apply(this, arguments);
        delete node.properties[SHOWN]; // another session has other pictures
        grid.load();
        return answer;
      };
    }
    node.atelierRatings = grid;
  },

  loadedGraphNode(node) {
    node.atelierRatings?.load(node.properties[SHOWN]);
  },
});
