// Hands regl-scatterplot to the map. Bundled with it into regl-scatterplot.js by `npm ci && npm run build`.
// The library looks at every frame whether there is something to draw. Here that can rest, while a map is kept that is not on the page, until it wakes.
import create, { createRegl, createRenderer } from "regl-scatterplot"

function engine(options) {
  const canvas = document.createElement("canvas")
  const regl = createRegl(canvas)
  let draw
  let next
  const turn = () => {
    next = requestAnimationFrame(turn)
    regl.poll()
    draw()
  }
  const rest = () => cancelAnimationFrame(next)
  const wake = () => {
    rest()
    next = requestAnimationFrame(turn)
  }
  regl.frame = (each) => {
    draw = each
    wake()
    return { cancel: rest }
  }
  const renderer = createRenderer({ regl, canvas })
  const resize = () => renderer.resize()
  resize()
  addEventListener("resize", resize)
  const plot = create({ ...options, renderer })
  const destroy = () => {
    removeEventListener("resize", resize)
    plot.destroy()
    renderer.destroy()
  }
  return { ...plot, rest, wake, destroy, lost: () => regl._gl.isContextLost() }
}

export default function () {
  const store = (globalThis.lolMap ??= { columns: new Map(), waiting: new Set() })
  store.engine = engine
  store.waiting.forEach((look) => look())
}
