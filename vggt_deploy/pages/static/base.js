"use strict";
/* What all scripts of a page share: its data, its colours, downloads. */
const Pages = (() => {
  const read = new Map();

  /* Values that the page was written with under that name; null where there are none. */
  function data(name) {
    if (!read.has(name)) {
      const element = document.getElementById(`data-${name}`);
      read.set(name, element ? JSON.parse(element.textContent) : null);
    }
    return read.get(name);
  }

  function bytes(base64) {
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) out[i] = text.charCodeAt(i);
    return out;
  }

  /* The value of a custom property of the style sheet: plots take their colours from there. */
  function style(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function onTheme(callback) {
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback);
  }

  const pending = new Set();

  /* Draws when the element is about to be seen, once: a long page opens at once. Whoever prints
     sees all of it. */
  function whenNear(element, callback) {
    const run = () => {
      observer.disconnect();
      pending.delete(run);
      callback();
    };
    const observer = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) run();
    }, { rootMargin: "600px" });
    pending.add(run);
    observer.observe(element);
  }

  const printers = [];

  /* What is drawn to the size of the window is drawn to that of the paper, and back. */
  function onPrint(before, after) {
    printers.push({ before, after });
  }

  window.addEventListener("beforeprint", () => {
    [...pending].forEach((run) => run());
    printers.forEach(({ before }) => before());
  });
  window.addEventListener("afterprint", () => printers.forEach(({ after }) => after()));

  /* Names and labels must not become markup: plotly reads a little HTML in all its texts. */
  function plain(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  /* Saves what the page carries under `name` (base64 of a file) as that file. */
  function save(name) {
    const file = data(name);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes(file.base64)], { type: file.type }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  document.querySelectorAll("[data-save]").forEach((button) => {
    button.addEventListener("click", () => save(button.dataset.save));
  });

  /* Four digits and no more: what the eye compares. */
  function number(value, digits = 4) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "-";
    return String(Number(value.toPrecision(digits)));
  }

  return { data, bytes, style, onTheme, whenNear, onPrint, plain, number };
})();
