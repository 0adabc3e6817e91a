// Points of charts without a mouse, and with their pictures: every Plotly chart takes the keyboard focus, the arrow keys walk along its points, and a card
// tells the point's name, values and preview. The same card follows the mouse where a point has a preview. Text is set as text, never as HTML.
export default function ({ data }) {
  const previews = data.previews ?? {}
  const card = document.createElement("div")
  card.setAttribute("role", "status")
  card.dataset.testid = "pointCard"
  const image = document.createElement("img")
  const words = document.createElement("div")
  card.append(image, words)
  Object.assign(card.style, {
    position: "fixed", zIndex: 1000, pointerEvents: "none", padding: "8px", borderRadius: "8px", border: "1px solid rgba(128,128,128,.5)", fontSize: "13px", maxWidth: "260px",
    boxShadow: "0 2px 10px rgba(0,0,0,.35)", display: "none", whiteSpace: "pre-line",
  })
  Object.assign(image.style, { width: "96px", height: "96px", borderRadius: "6px", display: "none" })
  document.body.append(card)

  const idOf = (value) => (Array.isArray(value) ? value[0] : value)
  const hide = () => (card.style.display = "none")
  function show(text, id, x, y) {
    const app = getComputedStyle(document.querySelector(".stApp") ?? document.body)
    card.style.background = app.backgroundColor
    card.style.color = app.color
    card.style.fontFamily = app.fontFamily
    words.textContent = text
    image.style.display = previews[id] ? "block" : "none"
    if (previews[id]) image.src = previews[id]
    card.style.display = "block"
    const box = card.getBoundingClientRect()
    card.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px"
    card.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 4)) + "px"
  }

  function pointsOf(chart) {
    const walk = []
    for (const trace of chart._fullData ?? []) {
      if (trace.visible !== true || !trace.x?.length || !trace.y?.length || !["scatter", "scattergl", "bar"].includes(trace.type) || trace.hoverinfo === "skip") continue
      for (let i = 0; i < trace.x.length; i++) walk.push({ trace, i })
    }
    return walk
  }
  const plain = (text) => String(text ?? "").replace(/<br>/g, "\n").replace(/<[^>]*>/g, "")
  const titleOf = (axis, letter) => plain(axis?.title?.text).slice(0, 40) || letter
  const worded = (value) => (typeof value === "number" ? String(+value.toPrecision(5)) : String(value))

  function step(chart, by) {
    const points = pointsOf(chart)
    if (!points.length) return
    const at = (chart._walked = ((chart._walked ?? (by > 0 ? -1 : 0)) + by + points.length) % points.length)
    const { trace, i } = points[at]
    const layout = chart._fullLayout
    const across = layout["xaxis" + trace.xaxis.slice(1)]
    const up = layout["yaxis" + trace.yaxis.slice(1)]
    const box = chart.getBoundingClientRect()
    const name = plain(Array.isArray(trace.text) ? trace.text[i] : trace.name)
    const lines = [name, `${titleOf(across, "x")}: ${worded(trace.x[i])}`, `${titleOf(up, "y")}: ${worded(trace.y[i])}`, `${at + 1} of ${points.length}`]
    const x = box.left + across._offset + across.d2p(trace.x[i])
    const y = box.top + up._offset + up.d2p(trace.y[i])
    show(lines.filter(Boolean).join("\n"), idOf(trace.customdata?.[i]), x, y)
  }

  const wired = new Map()
  function wire(chart) {
    if (wired.has(chart) || !chart.on) return
    const keys = (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key]
      if (event.key === "Escape") hide()
      if (by) {
        event.preventDefault()
        step(chart, by)
      }
    }
    const over = (event) => {
      const point = event.points[0]
      const id = idOf(point.customdata)
      if (previews[id]) show(plain(point.text), id, event.event?.clientX ?? 0, (event.event?.clientY ?? 0) + 24)
    }
    chart.tabIndex = 0
    chart.addEventListener("keydown", keys)
    chart.addEventListener("blur", hide)
    chart.on("plotly_hover", over)
    chart.on("plotly_unhover", hide)
    wired.set(chart, () => {
      chart.removeEventListener("keydown", keys)
      chart.removeEventListener("blur", hide)
      chart.removeListener?.("plotly_hover", over)
      chart.removeListener?.("plotly_unhover", hide)
    })
  }
  const look = () => {
    document.querySelectorAll(".js-plotly-plot").forEach(wire)
    for (const [chart, undo] of wired)
      if (!chart.isConnected) {
        undo()
        wired.delete(chart)
      }
  }
  look()
  const timer = setInterval(look, 500)
  return () => {
    clearInterval(timer)
    wired.forEach((undo) => undo())
    card.remove()
  }
}
