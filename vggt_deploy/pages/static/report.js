"use strict";
/* The pictures of a report: one variant and one picture at a time, from the page's own store. */
(() => {
  const maps = Pages.data("maps");
  if (!maps) return;
  const store = Pages.data("pictures");
  const section = document.getElementById("maps");
  const variant = document.getElementById("map-variant");
  const thumbs = document.getElementById("map-pictures");
  let picture = 0;

  function part(tile, name) {
    return section.querySelector(`[data-tile="${tile}"] [data-map="${name}"]`);
  }

  function set(image, key) {
    if (image.src !== store[key]) image.src = store[key];
  }

  function legend(kind, ends) {
    section.querySelectorAll(`[data-legend="${kind}"] [data-end]`).forEach((element) => {
      element.textContent = ends[element.dataset.end];
    });
  }

  /* Left FP32, right the variant, with what is said of both below. */
  function compared(kind, own, reference, said) {
    const tile = section.querySelector(`[data-tile="${kind}"]`);
    if (!tile) return;
    const there = own[kind] !== undefined;
    tile.querySelectorAll(".slider, [data-legend]").forEach((element) => { element.hidden = !there; });
    part(kind, "missing").hidden = there;
    if (!there) {
      part(kind, "said").textContent = "";
      return;
    }
    set(part(kind, "left"), reference[kind]);
    set(part(kind, "right"), own[kind]);
    part(kind, "name").textContent = variant.value;
    part(kind, "said").textContent = said;
    legend(kind, maps.pictures[picture][kind]);
  }

  function bad(count) {
    return count ? ` ${count.toLocaleString("en")} values are not finite.` : "";
  }

  function median(own) {
    const broken = own.broken
      ? ` (${own.broken.toLocaleString("en")} of ${own.known.toLocaleString("en")} pixels not finite: 100 %)` : "";
    return `${Pages.number(own.median_error, 3)} %${broken}`;
  }

  function drawDifference(own) {
    const itself = own.difference === undefined;
    const image = part("difference", "difference");
    image.hidden = itself;
    part("difference", "same").hidden = !itself;
    if (!itself) set(image, own.difference);
    const beyond = own.beyond >= 0.0005 ? `; ${(100 * own.beyond).toFixed(1)} % lie beyond the colours` : "";
    part("difference", "said").textContent = itself
      ? ""
      : `Mean |difference| ${Pages.number(own.mean_difference, 3)}${beyond}.`;
    legend("difference", maps.pictures[picture].difference);
  }

  function draw() {
    const shown = maps.pictures[picture];
    const own = maps.variants[variant.value][picture];
    const reference = maps.variants[maps.reference][picture];
    document.getElementById("map-name").textContent = shown.name;
    set(part("photo", "photo"), shown.photo);
    part("photo", "photo").alt = `Picture ${shown.name} as the network sees it`;
    compared("depth", own, reference, bad(own.not_finite).trim());
    drawDifference(own);
    compared(
      "error", own, reference,
      own.error === undefined ? "" : `Median: FP32 ${median(reference)}, variant ${median(own)}.`,
    );
    thumbs.querySelectorAll("button").forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === picture));
    });
    section.dataset.drawn = `${variant.value} ${picture}`;
  }

  const labels = Object.keys(maps.variants);
  labels.forEach((label) => variant.add(new Option(label, label)));
  const first = Pages.data("plots").first;
  const usable = first !== maps.reference && labels.includes(first);
  variant.value = (usable && first) || labels.find((label) => label !== maps.reference) || maps.reference;

  maps.pictures.forEach((entry, i) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    button.type = "button";
    button.title = entry.name;
    button.setAttribute("aria-label", `Picture ${i + 1}: ${entry.name}`);
    image.alt = "";
    image.src = store[entry.photo];
    button.append(image);
    button.addEventListener("click", () => { picture = i; draw(); });
    thumbs.append(button);
  });
  variant.addEventListener("change", draw);
  draw();
})();
