// Keeps one column of a map in the browser under its digest, so that the map's own messages name columns and do not repeat them. Streamlit sends a message
// that it has sent before as a reference only: so a column travels once. data: 16 bytes of digest (text), then the column.
export default function ({ data, parentElement }) {
  const store = (globalThis.lolMap ??= { columns: new Map(), waiting: new Set() })
  const digest = new TextDecoder().decode(data.subarray(0, 16))
  const earlier = parentElement.lolDigest
  if (earlier === digest && store.columns.has(digest)) return parentElement.lolForget
  store.columns.set(digest, data.slice(16).buffer)
  parentElement.lolDigest = digest
  if (earlier) store.columns.delete(earlier)
  store.waiting.forEach((look) => look())
  return (parentElement.lolForget ??= () => store.columns.delete(parentElement.lolDigest))
}
