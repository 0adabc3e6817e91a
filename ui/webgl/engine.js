// Hands regl-scatterplot to the map. Bundled with it into regl-scatterplot.js by `npm ci && npm run build`.
import create from "regl-scatterplot"

export default function () {
  const store = (globalThis.lolMap ??= { columns: new Map(), waiting: new Set() })
  store.engine = create
  store.waiting.forEach((look) => look())
}
