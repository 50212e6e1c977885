"""What the texts say, in the language of who reads them.

    say = speaker("zh")
    say("slower than {them}:", them="torch/fp32")      # the code holds the English template
    say.said(recommendation.said)                      # sentences kept as template and values
    say.recorded("not among the outputs")              # English text that a report carries

English is the template itself; any other language is a catalogue beside this file (`zh.toml`).
"""

from vggt_deploy.report.languages.speaker import (
    ENGLISH,
    LANGUAGES,
    Language,
    Speaker,
    speaker,
)

__all__ = ["ENGLISH", "LANGUAGES", "Language", "Speaker", "speaker"]
