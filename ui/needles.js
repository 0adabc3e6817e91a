// Dials as SVG. They stay in the page, so that a needle turns from where it was to where the next R sends it.
const SVG = "http://www.w3.org/2000/svg"
const PICTURE = `
  <path class="scale" d="M 22 96 A 56 56 0 0 1 134 96" />
  <line class="before" x1="78" y1="96" x2="28" y2="96" />
  <line class="after" x1="78" y1="96" x2="28" y2="96" />
  <text class="title" x="78" y="14"></text>
  <text class="unit" x="78" y="31"></text>
  <text class="low" x="22" y="114"></text>
  <text class="high" x="134" y="114"></text>
  <text class="values" x="78" y="132"></text>
  <text class="verdict" x="78" y="152"></text>`

function drawn() {
  const picture = document.createElementNS(SVG, "svg")
  picture.setAttribute("viewBox", "0 0 156 160")
  picture.setAttribute("role", "img")
  picture.innerHTML = PICTURE
  return picture
}

export default function ({ data, parentElement }) {
  let row = parentElement.querySelector(".dials")
  if (!row) {
    row = document.createElement("div")
    row.className = "dials"
    parentElement.append(row)
  }
  while (row.childElementCount > data.dials.length) row.lastChild.remove()
  while (row.childElementCount < data.dials.length) row.append(drawn())
  data.dials.forEach((dial, i) => {
    const picture = row.children[i]
    const said = `${dial.title}: ${dial.before} before R, ${dial.after} after; it ${dial.verdict}`
    picture.setAttribute("aria-label", said)
    const texts = { ...dial, values: `${dial.before} → ${dial.after}` }
    for (const text of picture.querySelectorAll("text")) text.textContent = texts[text.getAttribute("class")]
    picture.querySelector(".before").style.transform = `rotate(${180 * dial.from}deg)`
    picture.querySelector(".after").style.transform = `rotate(${180 * dial.to}deg)`
    picture.style.setProperty("--verdict", dial.color)
  })
}
