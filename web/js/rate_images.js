// The grid of Rate Images: every new picture with thumbs. What is rated is asked of the server, so it is right after a
// reload, and when somebody else rates the same session.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const NODE = "AtelierRateImages";
const HEIGHT = 260;
const EMPTY = "Queue the workflow. The new pictures come here.";
const VERDICTS = [
  { value: 1, sign: "👍", name: "Like", keys: ["ArrowUp", "+"] },
  { value: -1, sign: "👎", name: "Dislike", keys: ["ArrowDown", "-"] },
  { value: 0, sign: "↩", name: "Take back the rating of", keys: ["Backspace", "Delete"] },
];

class RatingGrid {
  constructor(node) {
    this.node = node;
    this.pictures = [];
    this.asked = 0;
    this.root = element("div", "atelier-rate");
    this.grid = element("div", "atelier-rate-grid");
    this.grid.setAttribute("role", "list");
    this.status = element("div", "atelier-rate-status");
    this.status.setAttribute("role", "status");
    this.root.append(this.grid, this.status);
    // The canvas takes keys and the wheel for itself otherwise.
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("pointerdown", (event) => event.stopPropagation());
    this.say(EMPTY);
  }

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  /** Show these pictures, or the newest batch of the session. */
  async load(keys) {
    const mine = ++this.asked;
    const query = new URLSearchParams();
    if (keys) for (const key of [...new Set(keys)].slice(0, 100)) query.append("image", key);
    else query.set("session", String(this.widget("session")?.value ?? ""));
    try {
      const { pictures } = await request(`/atelier/pictures?${query}`);
      if (mine !== this.asked) return;
      const newest = pictures.filter((picture) => picture.created === pictures[0].created);
      this.show(keys ? pictures : newest);
    } catch (error) {
      if (mine === this.asked) this.say(error.message, true);
    }
  }

  show(pictures) {
    this.pictures = pictures;
    this.grid.replaceChildren(...pictures.map((picture, index) => this.card(picture, index)));
    if (pictures.length) this.count();
    else this.say(EMPTY);
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
      card.append(image);
    } else {
      card.append(element("div", "atelier-rate-gone", "This picture is gone. Queue again to make it anew."));
    }
    const bar = element("div", "atelier-rate-bar");
    for (const verdict of VERDICTS) {
      const button = element("button", "", verdict.sign);
      button.type = "button";
      button.dataset.value = verdict.value;
      button.title = `${verdict.name} picture ${index + 1} (${verdict.keys.join(" or ")})`;
      button.setAttribute("aria-label", `${verdict.name} picture ${index + 1}`);
      button.addEventListener("click", () => this.rate(picture.image, verdict.value));
      bar.append(button);
    }
    card.append(bar);
    mark(card, picture, index);
    return card;
  }

  async rate(image, value) {
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

async function request(path, options) {
  let answer, body;
  try {
    answer = await api.fetchApi(path, options);
    body = await answer.json();
  } catch {
    throw new Error("The server does not answer. The rating was not saved.");
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
    node.hideOutputImages = true; // the grid shows them
    const widget = node.addDOMWidget("pictures", "atelier-rate", grid.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], 380), Math.max(node.size[1], 480)]);

    const { onExecuted, onRemoved } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.atelier_pictures) grid.load(output.atelier_pictures);
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
        grid.load();
        return answer;
      };
    }
    node.atelierRatings = grid;
  },

  loadedGraphNode(node) {
    node.atelierRatings?.load();
  },
});
