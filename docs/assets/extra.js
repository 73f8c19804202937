// The members of an API page are closed: a link to one opens it, and a button opens them all.
function reveal() {
  const heading = document.getElementById(decodeURIComponent(location.hash.slice(1)))
  if (!heading?.closest(".doc-object")) return
  const details = heading.parentElement.querySelector(":scope > .doc-contents > details")
  for (let place = details ?? heading; place; place = place.parentElement)
    if (place.tagName === "DETAILS") place.open = true
  heading.scrollIntoView()
}

const members = [...document.querySelectorAll(".doc-details")]
if (members.length > 1) {
  const button = document.createElement("button")
  const show = (open) => (button.textContent = open ? "Close all" : "Open all")
  button.className = "doc-open-all"
  button.addEventListener("click", () => {
    const open = members.some((details) => !details.open)
    for (const details of members) details.open = open
    show(open)
  })
  show(false)
  document.querySelector("article h1").after(button)
}
addEventListener("hashchange", reveal)
reveal()
