"""The page: what it shows, how a person finds and ends things, by mouse, by keyboard and on a phone."""

from __future__ import annotations

import pytest

from tests.helpers.harness import wait_until
from tests.panel.browser import Browser
from tests.panel.conftest import Show
from tests.panel.samples import crowd, household
from tests.panel.standin import StandIn, World

ROWS = "#proxies tbody tr"
NAMES = f"[...document.querySelectorAll('{ROWS} td.name a')].map(a => a.textContent)"
USERS = "[...document.querySelectorAll('#connections td.user .first')].map(e => e.textContent)"
FOCUS = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"


def names(browser: Browser) -> list[str]:
    found: list[str] = browser.run(f"return {NAMES}")
    return found


def test_a_proxy_and_its_client_are_shown_with_all_figures(browser: Browser, show: Show) -> None:
    show()
    browser.wait_text(ROWS, "nas")
    row = browser.text(f"{ROWS}:has([href='#/proxy/p2'])")
    for text in (
        "nas",
        "TCP",
        "gnar.example:9001",
        "192.0.2.17:51820",
        "0.9.0",
        "since 3 d",
        "4",
        "of 1,309",
    ):
        assert text in row
    for text in ("MB/s", "44.8 GB", "↓ 20.0 MB/s", "↑ 5.00 MB/s", "End"):
        assert text in row
    label = browser.run(f"return document.querySelector('{ROWS} svg').getAttribute('aria-label')")
    assert label.startswith("Last 5 min: down ")
    server = browser.text("#overview .card")
    for text in ("gnar 0.9.0", "control port 8910", "up 3 d 12 h", "53,028", "0.4 ms"):
        assert text in server


def test_who_went_away_stays_listed_behind_the_others_with_when_and_why(browser: Browser, show: Show) -> None:
    show()
    browser.wait_text("#clients tbody tr:last-child", "203.0.113.9:60233")
    row = browser.text("#clients tbody tr:last-child")
    assert "gone " in row
    assert ": connection reset" in row
    assert "Disconnect" not in row
    assert names(browser)[-1] == "demo"
    assert "the client left" in browser.text(f"{ROWS}:last-child")


def test_what_happens_appears_by_itself(browser: Browser, show: Show) -> None:
    standin = show()
    browser.wait_text("#events-list", "wrong token")
    standin.world.happened("client-gone", client="192.0.2.88:40112", reason="timed out")
    standin.world.happened("something-new", proxy="blog", at_most=7, after_s=75, none=[])
    browser.wait_text("#events-list li", "Client gone 192.0.2.88:40112 · timed out")
    browser.wait_text("#events-list li:first-child", "something new blog · at most 7 · after 1 min 15 s")
    new = standin.world.proxy(standin.world.clients["c1"], "just-opened", 9005, down=5)
    browser.wait_text(ROWS, "just-opened")
    standin.world.end("proxies", new["id"])
    browser.wait_text(f"{ROWS}:has([href='#/proxy/{new['id']}'])", "ended from the panel")


def test_text_of_peers_is_only_ever_text(browser: Browser, show: Show) -> None:
    world = World()
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    client = world.client(attack, attack, reason=attack)
    proxy = world.proxy(client, attack, 9000, link="javascript:alert(3)", reason=attack, down=1)
    world.connection(proxy, attack)
    world.happened(attack, name=attack, reason=attack)
    show(world, "#/proxy/p1")
    browser.wait_text("#connections tbody", attack)
    assert browser.text("#proxy-link") == "javascript:alert(3)"
    assert browser.run("return document.querySelector('#proxy-link').getAttribute('href')") is None
    browser.click("#proxy-end button")
    assert attack in browser.text("#question-title")
    browser.press("escape")
    browser.click(".back a")
    browser.wait_text("#events-list", attack)
    browser.wait_text("#clients tbody", attack)
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0


def test_nothing_is_fetched_from_elsewhere(browser: Browser, show: Show) -> None:
    standin = show()
    browser.wait_text(ROWS, "blog")
    addresses = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(addresses) > 10
    assert [each for each in addresses if not each.startswith(standin.url)] == []


# ---- finding -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_4000_proxies_are_shown_page_by_page_and_found_by_filter_and_order(
    browser: Browser, show: Show
) -> None:
    show(crowd(proxies=4000))
    browser.wait_text("#proxies .pager", "1 to 50 of 4,000")
    assert len(names(browser)) == 50
    browser.click("#proxies .pager button:last-child")
    browser.wait(f"{NAMES}[0] === 'service-0050'")
    browser.type("#proxies .filter", "service-39 TCP")
    browser.wait_text("#proxies .counter", "100 of 4,000 proxies")
    browser.wait(f"{NAMES}[0] === 'service-3900'")
    browser.click("#proxies th.name button")
    browser.wait(f"{NAMES}[0] === 'service-3999'")
    assert browser.run("return document.querySelector('#proxies th.name').ariaSort") == "descending"
    browser.type("#proxies .filter", "no such")
    browser.wait_text("#proxies .nothing", "None of the proxies matches the filter.")


@pytest.mark.slow
def test_5000_connections_are_filtered_and_sorted_by_the_server(browser: Browser, show: Show) -> None:
    standin = show(crowd(connections=5000), "#/proxy/p1")
    browser.wait_text("#connections .counter", "5,000 connections")
    browser.wait_text("#connections .pager", "1 to 100 of 5,000")
    assert browser.run(f"return {USERS}.length") == 100
    assert browser.run(f"return {USERS}[0]") == "198.51.100.0:1024"  # the youngest
    browser.click("#connections th.rate_down button")
    browser.wait(f"{USERS}[0] === '198.51.100.249:6023'")  # the fastest
    browser.click("#connections .pager button:last-child")
    browser.wait_text("#connections .pager", "101 to 200 of 5,000")
    browser.wait(f"{USERS}[0] === '198.51.100.149:5923'")
    browser.type("#connections .filter", ":5000")
    browser.wait_text("#connections .counter", "1 of 5,000 connections")
    browser.click("#connections tbody button")
    browser.wait_text("#connections .counter", "0 of 4,999 connections")
    assert len(standin.world.connections) == 4999


# ---- ending ------------------------------------------------------------------------------------------------


def test_ending_a_proxy_asks_first(browser: Browser, show: Show) -> None:
    standin = show()
    button = f"{ROWS}:has([href='#/proxy/p2']) td.action button"
    browser.click(button)
    browser.wait_text("#question", "End the proxy nas?")
    assert "4 users are cut off" in browser.text("#question-text")
    browser.click("#question-no")
    browser.wait("!document.querySelector('#question').open")
    assert standin.world.proxies["p2"]["state"] == "open"
    browser.click(button)
    browser.click("#question-yes")
    browser.wait_text("#message", "The proxy nas has ended.")
    browser.wait_text(f"{ROWS}:has([href='#/proxy/p2'])", "gone")


def test_disconnecting_a_client_asks_first(browser: Browser, show: Show) -> None:
    standin = show()
    browser.click("[aria-label='Disconnect the client 198.51.100.23:33710']")
    browser.wait_text("#question-text", "2 proxies of this client end. 15 users are cut off.")
    browser.click("#question-yes")
    browser.wait_text("#message", "The client 198.51.100.23:33710 is disconnected.")
    assert standin.world.clients["c3"]["state"] == "gone"


def test_who_may_only_look_sees_no_button_that_ends(browser: Browser, show: Show) -> None:
    world = household()
    world.may_change = False
    show(world)
    browser.wait_text("#read-only", "read only")
    browser.wait_text(ROWS, "nas")
    seen = "return [...document.querySelectorAll('.changing')].filter(e => e.checkVisibility()).length"
    assert browser.run(seen) == 0
    browser.click(f"{ROWS} td.name a")
    browser.wait_text("#connections tbody", "198.51.100.1")
    assert browser.run(seen) == 0


# ---- by keyboard, and while it is read ---------------------------------------------------------------------


def test_everything_is_done_by_keyboard_and_the_focus_is_never_lost(browser: Browser, show: Show) -> None:
    standin = show()
    browser.wait_text(ROWS, "wireguard")
    browser.run("document.querySelector('#proxies .filter').focus()")
    browser.press(*["tab"] * 6)  # by the heads of Proxy, Client, Users, Down and Up
    assert browser.run(f"return {FOCUS}") == "Drops"
    browser.press("tab")
    assert browser.run(f"return {FOCUS}") == "blog"
    browser.press("tab", "enter")
    browser.wait_text("#question", "End the proxy blog?")
    assert browser.run(f"return {FOCUS}") == "Cancel"
    browser.press("escape")
    browser.wait("!document.querySelector('#question').open")
    assert browser.run(f"return {FOCUS}") == "End the proxy blog"
    browser.run("document.querySelector('td.name a').focus()")
    browser.press("enter")
    browser.wait("document.activeElement.id === 'proxy-name'")
    browser.wait_text("#connections tbody", "198.51.100.1:40000")
    browser.run("document.querySelector('#connections tbody button').focus()")
    browser.press("enter")
    browser.wait(f"!{USERS}.includes('198.51.100.1:40000')")
    assert "u1" not in standin.world.connections
    assert browser.run(f"return {FOCUS}") == "End the connection of 198.51.100.8:40577"
    browser.run("document.querySelector('.back a').focus()")
    browser.press("enter")
    browser.wait(f"({FOCUS}) === 'blog'")
    browser.run("document.querySelector('[href=\"#clients\"]').focus()")
    browser.press("enter")
    browser.wait(f"({FOCUS}) === 'Clients'")


def test_news_take_neither_focus_nor_selection_nor_scroll(browser: Browser, show: Show) -> None:
    standin = show()
    browser.wait_text(ROWS, "nas")
    browser.resize(800, 400)
    browser.run("document.querySelector('[href=\"#/proxy/p2\"]').focus(); scrollTo(0, 500)")
    at = browser.run("return scrollY")
    standin.world.happened("stopping", reason="now")
    standin.world.proxy(standin.world.clients["c1"], "aaa", 9005, down=5)
    browser.wait_text(ROWS, "aaa")
    assert names(browser)[-1] == "aaa"  # rows that a person works in keep their places
    assert browser.run(f"return {FOCUS}") == "nas"
    assert browser.run("return scrollY") == at
    browser.run(
        "const cell = document.querySelector('[data-figure=\"rate-down\"]');"
        "getSelection().selectAllChildren(cell)"
    )
    browser.wait("document.body.matches('.paused')")
    selected = browser.run("return getSelection().toString()")
    standin.world.proxy(standin.world.clients["c1"], "later", 9006, down=5)
    sent = standin.sent
    wait_until(lambda: standin.sent > sent + 3, "news")
    assert browser.run("return getSelection().toString()") == selected
    assert "later" not in names(browser)
    browser.run("getSelection().removeAllRanges()")
    browser.wait_text(ROWS, "later")


def test_a_screen_reader_hears_messages_and_no_figures(browser: Browser, show: Show) -> None:
    show()
    browser.wait_text(ROWS, "nas")
    live = "return [...document.querySelectorAll('[aria-live], [role=alert], [role=log]')].map(e => e.id)"
    assert browser.run(live) == ["login-problem", "announcement"]


# ---- surroundings ------------------------------------------------------------------------------------------


def test_the_theme_is_the_systems_until_another_is_chosen_and_kept(browser: Browser, show: Show) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    standin = show()
    browser.prefer(color_scheme="dark")
    browser.wait(f"{ground} === 'rgb(14, 17, 22)'")
    browser.click("#theme")
    browser.wait_text("#theme", "Theme: light")
    browser.wait(f"{ground} === 'rgb(244, 245, 247)'")
    browser.open(standin.url)
    browser.wait_text("#theme", "Theme: light")
    assert browser.run(f"return {ground}") == "rgb(244, 245, 247)"


def test_nothing_moves_for_who_wants_no_motion(browser: Browser, show: Show) -> None:
    browser.prefer(reduced_motion="reduce")
    show()
    moving = "return document.getAnimations().length + getComputedStyle(theme).transitionDuration"
    assert browser.run(moving) == "00s"


@pytest.mark.parametrize("fragment", ["", "#/proxy/p1"], ids=["overview", "proxy"])
def test_nothing_is_wider_than_a_phone(browser: Browser, show: Show, fragment: str) -> None:
    world = household()
    long = "x" * 200
    proxy = world.proxy(world.client(long, long), long, 9000, link=long, reason=long, down=1)
    world.connection(world.proxies["p1"], long)
    world.happened("proxy-refused", name=long, reason=long)
    browser.resize(360, 740)
    show(world, fragment)
    browser.wait_text("#proxies" if not fragment else "#connections", long)
    assert browser.run("return document.documentElement.scrollWidth") == 360
    browser.click(f"[href='#/proxy/{proxy['id']}']" if not fragment else "#proxy-end button")
    assert browser.run("return document.documentElement.scrollWidth") == 360


# ---- password and losses -----------------------------------------------------------------------------------


def test_a_wrong_password_is_told_and_the_right_one_gets_in(browser: Browser, show: Show) -> None:
    world = household()
    world.password = "right"
    standin = show(world)
    browser.wait("document.activeElement.id === 'password'")
    browser.type("#password", "wrong\n")
    browser.wait_text("#login-problem", "That password is wrong.")
    standin.wrong = 20
    browser.type("#password", "wrong\n")
    browser.wait_text("#login-problem", "Too many wrong passwords from your address. Try again in a minute.")
    assert not browser.run("return document.querySelector('#page').checkVisibility()")
    browser.type("#password", "right\n")
    browser.wait_text(ROWS, "blog")
    assert "right" not in browser.run("return location.href + document.cookie")
    browser.click("#logout")
    browser.wait_text("#login", "Log in")
    assert not browser.run("return document.querySelector('#page').checkVisibility()")


def test_a_lost_server_is_told_and_the_page_goes_on_when_it_is_back(browser: Browser, show: Show) -> None:
    standin = show()
    browser.wait_text("#status", "Live")
    standin.__exit__()
    browser.wait_text("#status", "Connection lost, trying again")
    browser.wait_text("#announcement", "")
    assert "blog" in names(browser)  # what was known can still be read
    standin.world.proxy(standin.world.clients["c1"], "opened-meanwhile", 9005)
    with StandIn(standin.world, standin.server_port):
        browser.click("#retry")
        browser.wait_text("#status", "Live")
        browser.wait_text(ROWS, "opened-meanwhile")
        # The new stream has told all events again, but there are no more than before.
        assert not browser.run("return document.querySelector('#events-more').checkVisibility()")
        browser.wait("document.querySelector('#announcement').textContent.endsWith('is back.')")


def test_a_session_that_the_new_server_does_not_know_leads_to_the_login(browser: Browser, show: Show) -> None:
    world = household()
    world.password = "right"
    standin = show(world, "#/proxy/p1")
    browser.type("#password", "right\n")
    browser.wait_text("#connections tbody", "198.51.100.1")
    standin.__exit__()
    browser.wait_text("#status", "Connection lost")
    with StandIn(world, standin.server_port):
        browser.wait_text("#login", "Log in")
        browser.type("#password", "right\n")
        browser.wait_text("#connections tbody", "198.51.100.1")


def test_a_proxy_that_is_not_known_is_said_to_be_so(browser: Browser, show: Show) -> None:
    show(fragment="#/proxy/p99")
    browser.wait_text("#proxy-unknown", "The server does not know this proxy")
