// A map of many points by regl-scatterplot. Python sends the digests of columns (see carrier.js) and the selection as a bitmask; the map sends back the bitmask
// of what a lasso, a box, a click, the legend or the keyboard selected. Text is set as text, never as HTML.
const STEP = 5 // pixels: the arrow keys go at least so far, that each step is seen
const DIM = 0.25 // of the opacity of points that are not selected
const make = (tag, kind, text = "") => Object.assign(document.createElement(tag), { className: kind, textContent: text })
const worded = (value) => (Number.isNaN(value) ? "unknown" : String(+value.toPrecision(4)))
const counted = (value) => value.toLocaleString("en")

function unpack(text, length) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
  const indices = []
  for (let i = 0; i < length; i++) if ((bytes[i >> 3] >> (i & 7)) & 1) indices.push(i)
  return indices
}

function pack(indices, length) {
  const bytes = new Uint8Array((length + 7) >> 3)
  for (const i of indices) bytes[i >> 3] |= 1 << (i & 7)
  let text = ""
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192))
  return btoa(text)
}

const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity])

class PointMap {
  constructor() {
    this.box = make("section", "lol-map")
    this.bar = make("div", "lol-map-bar")
    this.plot = make("div", "lol-map-plot")
    this.canvas = make("canvas", "lol-map-canvas")
    this.card = make("div", "lol-map-card")
    this.legend = make("div", "lol-map-legend")
    this.plot.tabIndex = 0
    this.plot.setAttribute("role", "application")
    this.card.setAttribute("role", "status")
    this.card.dataset.testid = "mapCard"
    this.box.dataset.testid = "pointMap"
    this.image = make("img", "lol-map-preview")
    this.words = make("div", "lol-map-words")
    this.card.append(this.image, this.words)
    this.plot.append(this.canvas, this.card)
    this.box.append(this.bar, this.plot, this.legend)
    this.previews = new Map()
    this.chosen = []
    this.awaited = [] // bitmasks sent to Python that it has not shown yet
    this.look = () => this.draw()
    this.tools()
    this.plot.addEventListener("keydown", (event) => this.key(event))
    this.plot.addEventListener("blur", () => this.leave())
  }

  enter(parent) {
    parent.append(this.box)
    this.engine?.wake()
    globalThis.lolMap.waiting.add(this.look)
    return this
  }

  // The path of a drag, from where the button goes down to where it comes up. The library begins a lasso at the first move that it sees, takes a point every
  // ten milliseconds and forgets the last of them: it draws the line, and what is selected follows from the whole path. A drag that ends where it began is no
  // click on the point there.
  drags() {
    const { signal } = (this.gone = new AbortController())
    const position = (event) => [event.clientX, event.clientY]
    let path = []
    let far = false
    this.plot.addEventListener("mousedown", (event) => ([path, far] = [[position(event)], false]), { capture: true })
    this.plot.addEventListener("click", (event) => far && event.stopPropagation(), { capture: true })
    const move = (event) => {
      if (!path.length || !(event.buttons & 1)) return
      path.push(position(event))
      far ||= Math.hypot(event.clientX - path[0][0], event.clientY - path[0][1]) > 4
      this.lassoing = far && this.mode.mouseMode === "lasso"
    }
    const up = (event) => {
      if (this.lassoing) this.surround([...path, position(event)], event)
      path = []
    }
    addEventListener("mousemove", move, { capture: true, signal })
    addEventListener("mouseup", up, { signal })
  }

  // Selects what a path on the screen surrounds: between its ends with the box.
  surround(path, { shiftKey, altKey }) {
    this.lassoing = false
    const { left, top, width, height } = this.canvas.getBoundingClientRect()
    const pixel = (2 * this.engine.get("cameraDistance")) / height
    const [x0, y0] = this.engine.get("cameraTarget")
    const ring = path.map(([x, y]) => [x0 + (x - left - width / 2) * pixel, y0 - (y - top - height / 2) * pixel])
    const [first, last] = [ring[0], ring.at(-1)]
    const box = [first, [last[0], first[1]], last, [first[0], last[1]]]
    this.mark(this.chosen, this.shown) // not what the library made of its part of the path
    this.engine.lassoSelect(this.mode.lassoType === "rectangle" ? box : ring, { isGl: true, merge: shiftKey, remove: altKey })
  }

  tools() {
    const modes = { Lasso: ["lasso", "freeform"], Box: ["lasso", "rectangle"], Pan: ["panZoom", "freeform"] }
    const group = make("div", "lol-map-modes")
    group.setAttribute("role", "group")
    group.setAttribute("aria-label", "What dragging does")
    for (const [name, [mouseMode, lassoType]] of Object.entries(modes)) {
      const button = make("button", "lol-map-button", name)
      button.type = "button"
      button.onclick = () => {
        this.mode = { mouseMode, lassoType }
        this.engine?.set(this.mode)
        for (const other of group.children) other.setAttribute("aria-pressed", String(other === button))
      }
      button.setAttribute("aria-pressed", String(name === "Lasso"))
      group.append(button)
    }
    this.mode = { mouseMode: "lasso", lassoType: "freeform" }
    const reset = make("button", "lol-map-button", "Whole map")
    reset.type = "button"
    reset.onclick = () => this.engine && this.whole({ transition: true, transitionDuration: 250 })
    this.clear = make("button", "lol-map-button", "Clear")
    this.clear.type = "button"
    this.clear.onclick = () => this.choose([])
    this.count = make("span", "lol-map-count")
    this.count.setAttribute("aria-live", "polite")
    this.bar.append(group, reset, this.clear, this.count)
  }

  update(data, send) {
    this.data = data
    this.send = send
    this.plot.setAttribute(
      "aria-label",
      `${data.alt}. Arrow keys go to the nearest point in their direction, Enter selects it, plus, minus and 0 zoom, Escape clears the selection.`,
    )
    if (data.peeked) this.previews.set(`${data.coordinates} ${data.peeked.index}`, data.peeked.preview)
    if (data.peeked && data.peeked.index === this.at) this.show(this.at)
    this.draw()
  }

  // Draws once every column is there, and again only what has changed.
  async draw() {
    const { data } = this
    const { columns, engine: create } = globalThis.lolMap
    if (!data || !create || !["coordinates", "colour", "names"].every((name) => columns.has(data[name]))) return
    if (this.busy) return void (this.again = true)
    this.busy = true
    try {
      await this.redraw(data, columns, create)
    } catch (error) {
      this.plot.replaceChildren(make("p", "lol-map-words", `${error.message} This map needs WebGL: switch on Figure to save for one that does not.`))
      this.engine = null
      return
    }
    this.busy = false
    if (this.again) {
      this.again = false
      this.draw()
    }
  }

  async redraw(data, columns, create) {
    const moved = this.coordinates !== data.coordinates
    const coloured = moved || this.colour !== data.colour || this.scale !== JSON.stringify(data.scale)
    this.engine ??= this.start(create)
    if (moved) {
      const xy = new Float32Array(columns.get(data.coordinates))
      this.n = xy.length / 2
      this.place(xy)
      this.awaited = []
      this.shown = undefined
      this.leave()
    }
    if (this.names !== data.names) {
      this.names = data.names
      this.ends = undefined
      this.text = new Uint8Array(columns.get(data.names))
    }
    const paper = getComputedStyle(this.plot).backgroundColor
    if (coloured || paper !== this.paper) {
      const light = paper.match(/[\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) > 382
      const ink = light ? [0.1, 0.1, 0.1, 1] : [0.95, 0.95, 0.95, 1]
      const shades = [...data.scale.colours, data.scale.unknown]
      this.paper = paper
      // What the library calls background is the ring around selected points, and it takes that up only when a colour of points changes: that under the mouse does.
      this.engine.set({ backgroundColor: ink, lassoColor: ink, lassoLineWidth: 1.5, colorBy: "valueA" })
      this.engine.set({ pointColor: shades, pointColorActive: shades, pointColorHover: shades.map(() => ink) })
    }
    if (coloured) {
      this.codes = this.code(data.scale, columns.get(data.colour))
      const [size, opacity] = this.n > 200_000 ? [2, 0.4] : this.n > 20_000 ? [3, 0.6] : [5, 0.85]
      this.engine.set({ pointSize: size, pointSizeSelected: 1, pointOutlineWidth: 1, opacity, opacityInactiveScale: DIM })
      const rows = new Array(this.n)
      for (let i = 0; i < this.n; i++) rows[i] = [this.x[i], this.y[i], this.codes[i]]
      const kept = moved ? {} : { spatialIndex: this.engine.get("spatialIndex") }
      await this.engine.draw(rows, { zDataType: "categorical", preventFilterReset: true, ...kept })
      Object.assign(this, { coordinates: data.coordinates, colour: data.colour, scale: JSON.stringify(data.scale) })
      this.shown = undefined // drawing forgets the selection
    }
    this.take(data.selection, moved)
    this.keys()
    this.box.dataset.drawn = data.coordinates
    this.box.dataset.colour = data.colour
  }

  start(create) {
    const { width, height } = this.canvas.getBoundingClientRect()
    this.size = [Math.max(1, width), Math.max(1, height)]
    const engine = create({
      canvas: this.canvas, width: this.size[0], height: this.size[1], deselectOnEscape: false, deselectOnDblClick: false, lassoInitiator: false, actionKeyMap: { merge: "shift", remove: "alt" }, ...this.mode,
    })
    engine.subscribe("select", ({ points }) => this.lassoing || this.choose(points))
    engine.subscribe("deselect", () => this.lassoing || this.choose([]))
    engine.subscribe("pointOver", (i) => this.show(i))
    engine.subscribe("pointOut", () => this.hide())
    engine.subscribe("view", () => this.hide())
    engine.subscribe("lassoStart", () => this.hide())
    this.plot.addEventListener("wheel", () => (this.free = true), { passive: true })
    this.plot.addEventListener("mousemove", (event) => (this.free ||= event.buttons === 1 && this.mode.mouseMode === "panZoom"))
    this.sizes = new ResizeObserver(([{ contentRect }]) => this.fit(contentRect))
    this.sizes.observe(this.plot)
    this.drags() // after the library, which listens to the same events
    return engine
  }

  // Setting a size draws all points anew, and a map that has left the page has none: neither need be told to the library.
  fit({ width, height }) {
    if (!width || (width === this.size[0] && height === this.size[1])) return
    this.size = [width, height]
    this.engine.set({ width, height })
    if (this.reach && !this.free) this.whole()
  }

  // Both axes in one scale, the middle in the middle, the longer one from -1 to 1.
  place(xy) {
    const x = xy.subarray(0, this.n)
    const y = xy.subarray(this.n)
    const [left, right] = range(x)
    const [bottom, top] = range(y)
    const half = Math.max(right - left, top - bottom) / 2 || 1
    this.x = x.map((v) => (v - (left + right) / 2) / half)
    this.y = y.map((v) => (v - (bottom + top) / 2) / half)
    this.reach = [(right - left) / 2 / half, (top - bottom) / 2 / half]
    this.whole()
  }

  // All points in view: at a camera's distance of d the plot is 2d high.
  whole(options) {
    const { clientWidth, clientHeight } = this.plot
    const far = 1.06 * Math.max(this.reach[1], (this.reach[0] * clientHeight) / (clientWidth || 1))
    this.free = false
    this.engine.zoomToLocation([0, 0], far, options)
  }

  // The colour of each point as a number: a category, or the step of a number on the scale; the last one is for points without a value.
  code(scale, buffer) {
    this.values = scale.kind === "numbers" ? new Float32Array(buffer) : null
    if (!this.values) return new Uint8Array(buffer)
    const steps = scale.colours.length
    const span = scale.high - scale.low || 1
    return Uint8Array.from(this.values, (v) => (Number.isNaN(v) ? steps : Math.min(steps - 1, Math.floor(((v - scale.low) / span) * steps))))
  }

  // The selection as Python has it. While Python has not shown the latest that was chosen here, an older one is passed over.
  take(mask, moved) {
    if (!moved && this.awaited.length && mask !== this.awaited.at(-1)) return
    this.awaited = []
    if (this.shown !== mask) this.mark(unpack(mask, this.n), mask)
  }

  mark(indices, mask) {
    this.shown = mask
    this.chosen = indices
    if (indices.length) this.engine.select(indices, { preventEvent: true })
    else this.engine.deselect({ preventEvent: true })
  }

  choose(indices) {
    const mask = pack(indices, this.n)
    if (mask === this.shown) return
    this.mark(indices, mask)
    this.awaited.push(mask)
    this.keys()
    this.send("selection", { of: this.data.coordinates, mask })
  }

  // The legend, with how many of each colour are selected.
  keys() {
    const { scale } = this.data
    const all = new Array(scale.colours.length + 1).fill(0)
    const own = all.slice()
    for (const code of this.codes) all[code]++
    for (const i of this.chosen) own[this.codes[i]]++
    const any = this.chosen.length > 0
    const number = (k) => (any ? `${counted(own[k])} of ${counted(all[k])}` : counted(all[k]))
    const last = scale.colours.length
    const entry = (k, name, colour) => {
      const button = make("button", "lol-map-entry")
      button.type = "button"
      button.title = `Select ${name}`
      const dot = make("span", "lol-map-dot")
      dot.style.background = colour
      button.append(dot, make("span", "", name), make("span", "lol-map-number", number(k)))
      button.onclick = () => this.choose(this.coded(k))
      return button
    }
    const parts = []
    if (scale.title) parts.push(make("span", "lol-map-title", scale.title))
    if (scale.kind === "numbers") {
      const ramp = make("span", "lol-map-ramp")
      ramp.style.background = `linear-gradient(to right, ${scale.colours.join(", ")})`
      const bars = make("span", "lol-map-scale")
      bars.append(make("span", "", worded(scale.low)), ramp, make("span", "", worded(scale.high)))
      parts.push(bars)
      if (any) {
        const known = this.chosen.map((i) => this.values[i]).filter((v) => !Number.isNaN(v))
        const [low, high] = range(known)
        if (known.length) parts.push(make("span", "lol-map-number", `selected: ${worded(low)} to ${worded(high)}`))
      }
    } else scale.names.forEach((name, k) => parts.push(entry(k, name, scale.colours[k])))
    if (all[last]) parts.push(entry(last, scale.rest, scale.unknown))
    this.legend.replaceChildren(...parts)
    this.count.textContent = any ? `${counted(this.chosen.length)} of ${counted(this.n)} selected` : `${counted(this.n)} points`
    this.clear.disabled = !any
    this.box.dataset.selected = this.chosen.length
  }

  coded(k) {
    const indices = []
    this.codes.forEach((code, i) => code === k && indices.push(i))
    return indices
  }

  nameOf(i) {
    if (!this.ends) {
      this.ends = []
      this.text.forEach((byte, at) => byte === 10 && this.ends.push(at))
    }
    return new TextDecoder().decode(this.text.subarray(i ? this.ends[i - 1] + 1 : 0, this.ends[i]))
  }

  show(i) {
    const { scale, previews } = this.data
    const place = this.engine.getScreenPosition(i)
    if (!place) return
    this.at = i
    const value = this.values ? worded(this.values[i]) : this.codes[i] < scale.colours.length ? scale.names[this.codes[i]] : scale.rest
    this.words.textContent = scale.title ? `${this.nameOf(i)}\n${scale.title}: ${value}` : this.nameOf(i)
    const preview = this.previews.get(`${this.data.coordinates} ${i}`)
    this.image.style.display = preview ? "block" : "none"
    if (preview) this.image.src = preview
    clearTimeout(this.asking)
    if (previews && preview === undefined) this.asking = setTimeout(() => this.send("peek", { of: this.data.coordinates, index: i }), 150)
    this.card.style.display = "block"
    const { clientWidth, clientHeight } = this.plot
    const [x, y] = place
    const { offsetWidth, offsetHeight } = this.card
    this.card.style.left = `${Math.max(4, x + 14 + offsetWidth < clientWidth ? x + 14 : x - 14 - offsetWidth)}px`
    this.card.style.top = `${Math.max(4, Math.min(y + 14, clientHeight - offsetHeight - 4))}px`
  }

  hide() {
    clearTimeout(this.asking)
    this.card.style.display = "none"
  }

  leave() {
    this.hide()
    if (this.at !== undefined) this.engine?.hover(-1, { preventEvent: true })
    this.at = undefined
  }

  key(event) {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key]
    const zoom = { "+": 0.7, "=": 0.7, "-": 1 / 0.7 }[event.key]
    if (!this.engine || event.ctrlKey || event.metaKey) return
    if (way) this.step(...way)
    else if (zoom) this.goTo(this.engine.get("cameraTarget"), this.engine.get("cameraDistance") * zoom)
    else if (event.key === "0") this.whole()
    else if (event.key === "Enter" && this.at !== undefined) {
      const kept = event.shiftKey ? this.chosen.filter((i) => i !== this.at) : []
      this.choose(kept.length < this.chosen.length && event.shiftKey ? kept : [...kept, this.at])
    } else if (event.key === "Escape") {
      this.leave()
      this.choose([])
    } else return
    event.preventDefault()
  }

  goTo(target, distance) {
    this.free = true
    this.engine.zoomToLocation(target, distance)
  }

  // To the nearest point in the direction's quarter of the plane, at least STEP pixels away.
  step(across, up) {
    const pixel = (2 * this.engine.get("cameraDistance")) / this.plot.clientHeight
    const [x0, y0] = this.at === undefined ? this.engine.get("cameraTarget") : [this.x[this.at], this.y[this.at]]
    let nearest = -1
    let least = Infinity
    for (let i = 0; i < this.n; i++) {
      const dx = this.x[i] - x0
      const dy = this.y[i] - y0
      const along = dx * across + dy * up
      if (this.at !== undefined && (along < STEP * pixel || Math.abs(dx * up) + Math.abs(dy * across) > along)) continue
      const far = dx * dx + dy * dy
      if (far < least) [nearest, least] = [i, far]
    }
    if (nearest < 0) return
    const [x, y] = this.engine.getScreenPosition(nearest)
    if (x < 0 || y < 0 || x > this.plot.clientWidth || y > this.plot.clientHeight)
      this.goTo([this.x[nearest], this.y[nearest]], this.engine.get("cameraDistance"))
    this.engine.hover(nearest, { preventEvent: true })
    this.show(nearest)
  }

  // The latest map that has left the page is kept with its points on the graphics card, for the next one to go on with: where nothing has changed, nothing is drawn.
  exit() {
    globalThis.lolMap.waiting.delete(this.look)
    this.leave()
    this.awaited = []
    this.box.remove()
    this.engine?.rest()
    globalThis.lolMap.left?.destroy()
    globalThis.lolMap.left = this
  }

  destroy() {
    this.sizes?.disconnect()
    this.gone?.abort()
    this.engine?.destroy()
  }
}

function taken() {
  const { left } = globalThis.lolMap
  delete globalThis.lolMap.left
  if (left?.engine && !left.engine.lost()) return left
  left?.destroy()
  return new PointMap()
}

export default function ({ data, parentElement, setTriggerValue }) {
  globalThis.lolMap ??= { columns: new Map(), waiting: new Set() }
  const map = (parentElement.lolPointMap ??= taken().enter(parentElement))
  map.update(data, setTriggerValue)
  return () => map.exit()
}
