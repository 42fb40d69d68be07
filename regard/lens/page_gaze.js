"use strict";
// Points at a word: the large picture shows where the model looked for it. A click keeps it, another lets it go.
const { frames } = JSON.parse(document.getElementById("regard-data").textContent);
for (const article of document.querySelectorAll("article")) {
  const picture = article.querySelector(".large");
  let kept = 0;
  const show = (record, number) => { picture.src = frames[record][number]; };
  for (const word of article.querySelectorAll(".unit")) {
    const record = Number(word.dataset.record), number = Number(word.dataset.frame);
    const enter = () => show(record, number);
    const leave = () => show(record, kept);
    word.addEventListener("pointerenter", enter);
    word.addEventListener("focus", enter);
    word.addEventListener("pointerleave", leave);
    word.addEventListener("blur", leave);
    word.addEventListener("click", () => {
      kept = kept === number ? 0 : number;
      for (const other of article.querySelectorAll(".unit")) {
        other.classList.toggle("active", Number(other.dataset.frame) === kept);
        other.setAttribute("aria-pressed", String(Number(other.dataset.frame) === kept));
      }
      show(record, kept);
    });
  }
}
