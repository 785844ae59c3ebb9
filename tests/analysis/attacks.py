"""Texts that a model could write to run a script, to break the page, or to show something else than what it wrote."""

RUN = "document.documentElement.dataset.ran=1"

ATTACKS = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"<!--<script>--><script>{RUN}//",
    f"<img src=x onerror={RUN}>",
    f"&amp;<img src=x onerror={RUN}>",  # DataTables decodes what has an & in it
    f"&lt;img src=x onerror={RUN}&gt;",
    f"\"><svg onload={RUN}>'`",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<a href='javascript:{RUN}'>click</a>",
    "<style>*{display:none}</style><link rel=stylesheet href=//x.example/a.css>",
    "<meta http-equiv=refresh content='0;url=//x.example'><base href=//x.example>",
    f"<details open ontoggle={RUN}><textarea></title></template>",
    "{{data}} {{script}} ${x} $& $1 \\u003cscript\\u003e \\",
    "__proto__",
    "constructor",
    "left \u202eright to left\u202c \u2066isolate\u2069 \u200f\u200e\u061c",
    "line\u2028paragraph\u2029end\r\nnext\ttab",
    "nul\0 bell\a escape\x1b[31m delete\x7f c1\x85\x9b",
    "zero\u200bwidth\u200d\ufeff soft\xadhyphen tag\U000e0041",
    "half \ud83d of a pair, the other \ude00, a whole \U0001f600",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319" * 30,
    "שלום עולם, and مرحبا",
    "x" * 300_000,
    "\0" * 50_000 + "\u202e" * 50_000,
    "😀" * 3000,
    "]]> ]]&gt; <![CDATA[ ?> %3Cscript%3E",
    "",
    " ",
    "a/b#c?d%2Fe%",
]
