"use strict";
/* The divider between two pictures: the library moves it by mouse, touch and arrow keys; here it
   says to a screen reader what it is and where it stands, and knows Home and End. */
(() => {
  function say(slider) {
    const value = Math.round(slider.value);
    slider.setAttribute("aria-valuenow", String(value));
    slider.setAttribute("aria-valuetext", `divider at ${value} %`);
  }

  document.querySelectorAll("img-comparison-slider").forEach((slider) => {
    slider.setAttribute("role", "slider");
    slider.setAttribute("aria-valuemin", "0");
    slider.setAttribute("aria-valuemax", "100");
    slider.setAttribute("aria-label", slider.dataset.label || "Divider between two pictures");
    slider.addEventListener("slide", () => say(slider));
    slider.addEventListener("keydown", (event) => {
      const ends = { Home: 0, End: 100 };
      if (event.key in ends) {
        slider.value = ends[event.key];
        say(slider);
        event.preventDefault();
      } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        event.preventDefault();
      }
    });
    say(slider);
  });
})();
