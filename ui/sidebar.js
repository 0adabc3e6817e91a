// On a phone the sidebar lies over the page: it closes when another page was chosen in it.
let last
export default function ({ data }) {
  const changed = last !== undefined && last !== data.page
  last = data.page
  if (changed && window.innerWidth < 768) {
    document.querySelector('[data-testid="stSidebar"][data-collapsed="false"] [data-testid="stSidebarCollapseButton"] button')?.click()
  }
}
