"""Words of abuse: insults and profanity, English, no slurs.

Some have harmless uses. What they are used for is told by where they stand, not by the list: it
says which words are counted, or made unlikely, in texts that are toxic.
"""

from __future__ import annotations

_MILD = """
    idiot idiots idiotic stupid dumb moron morons fool fools foolish loser losers pathetic jerk
    ugly disgusting worthless useless liar liars coward crap damn hell hate hated trash garbage
    scum filthy lazy arrogant ignorant brat pig pigs snake clown clowns creep freak lunatic nasty
    sucks kill shit ass fuck fucking
"""
MILD_WORDS = tuple(_MILD.split())
"""Those whose probability ``toxic_mass`` is."""

_STRONG = """
    fucked fucker fuckers fucks fuckin motherfucker motherfuckers motherfucking shits shitty
    bullshit shithead asshole assholes asses dumbass jackass arse arsehole bastard bastards bitch
    bitches bitching bitchy cock cocks cocksucker cunt cunts dick dicks dickhead douche douchebag
    prick pricks pussy pussies slut sluts slutty whore whores tits boobs butthole wank wanker
    wankers piss pissed goddamn goddamned damned crappy sucker suck sucking screwed turd turds
    jerks creeps creepy freaks imbecile imbeciles dimwit halfwit dumber dumbest dunce stupidity
    stupidest scumbag scumbags sleazy trashy vermin rats swine rapist rape raped killing murder
    penis vagina anal porn horny perv pervert perverts
"""
WORDS_OF_ABUSE = (*MILD_WORDS, *_STRONG.split())
