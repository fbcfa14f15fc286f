"""A built-in tagged corpus that every machine can make: announcements, drawn from a grammar.

    Jordan Ford joined Chelsea from Paris Rovers on 3 May .
    B-PER I-PER O B-ORG O B-ORG I-ORG O B-DATE I-DATE O

People (PER), organisations (ORG), places (LOC) and dates (DATE) of one to four words, in BIO:
10,464 of them in training, 1,060 in validation and 1,040 in test. Looking words up is not enough.
Chelsea, Washington or Ford is a person, a place or an organisation as the words around it say;
April may be a person, and Mark, Reading, May or 2000 no name or date at all; two entities of one
type stand side by side; and 14% of the people, organisations and places in test (15% in validation)
hold a word that never occurs in training, so that its letters and its neighbours must tell. To give
each word the tag that it has most often in training, and O to other words, scores an F1 of 60.7 in
test and of 59.2 in validation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from rnnkit.tagging.columns import Sentence

Splits = tuple[list[Sentence], list[Sentence], list[Sentence]]
"""Training, validation and test sentences."""

TRAIN_SENTENCES = 4_000
EVALUATION_SENTENCES = 400
"""Number of validation sentences, and of test sentences."""

# Of the names that stand in one list alone one in so many is held out from training; evaluation
# sentences draw their names from these with this chance.
_HELD_OUT_FRACTION = 4
_UNSEEN_PERCENT = 12

_LOWER_CASE_PERCENT = 2
"""Chance of an entity to lose its capitals."""

_HEADLINE_PERCENT = 2
"""Chance of a sentence to stand in capitals."""

_NAMES = {
    "first": """
        Aaron Ada Adam Ahmed Alan Alice Ana Anna April Arthur August Austin Bill Carla Carlos
        Chelsea Clara Daniel David Diana Diego Elena Elif Emma Erik Eva Faith Fatima Felix
        Florence George Georgia Grace Grant Hassan Helen Henry Hope Hugo Ibrahim Igor Ines Ivan
        Jack James Jordan Joseph Julia June Karim Kenji Laura Leila Leon Lucas Madison Marco
        Maria Mark Marta Mary May Mei Mohammed Nadia Nina Noah Olga Oliver Omar Oscar Paris Paul
        Pedro Peter Priya Rafael Robert Rosa Rose Samuel Sara Sofia Sven Sydney Tariq Thomas
        Victor Victoria Vincent Virginia Walter Wei Will Yasmin Yuki Yusuf Zara""",
    "last": """
        Adams Ali Allen Almeida Andersen Baker Banks Barclay Becker Berg Brown Castro Chang Clark
        Cohen Cook Costa Day Dubois Edwards Eriksson Fischer Fisher Fleming Ford Foster Garcia
        Gomez Green Gupta Haddad Hansen Harris Hoffmann Holland Ito Ivanova Jackson Jansen Jensen
        Johnson Jordan Kaya Keller Kelly Kent Khan Kim King Klein Kowalski Kumar Lancaster Larsen
        Lee Lincoln Lopez Martin Martinez Mason Meyer Miller Morgan Morris Mueller Murphy
        Nakamura Nelson Nguyen Novak Olsen Park Parker Patel Pereira Petrov Popescu Porsche
        Ramirez Reyes Romano Rossi Santos Sato Schmidt Schneider Silva Singh Smirnov Smith
        Sokolov Stanley Sullivan Svensson Tanaka Taylor Turner Vargas Volkov Wagner Walker
        Washington Weber Wellington West White Wilson Winter Wolf Wood Wright Yamamoto Yilmaz
        Young Zhang Zimmermann""",
    "city": """
        Amsterdam Ankara Athens Austin Bangkok Barcelona Bath Beirut Berlin Bogota Boston Bristol
        Brussels Budapest Cairo Chelsea Chicago Cologne Cork Dakar Dallas Delhi Denver Derby Doha
        Dresden Dublin Edinburgh Florence Geneva Glasgow Granada Hamburg Hanoi Havana Helsinki
        Istanbul Jakarta Kiev Kyoto Lagos Lancaster Leeds Leicester Lima Lincoln Lisbon London
        Lyon Madison Madrid Marseille Melbourne Miami Milan Montreal Moscow Mumbai Munich Nairobi
        Naples Nice Orlando Osaka Oslo Oxford Paris Porto Prague Preston Reading Riga Rome
        Seattle Seoul Seville Shanghai Sheffield Stockholm Sydney Tokyo Toronto Tripoli Tunis
        Turin Valencia Venice Victoria Vienna Warsaw Washington Wellington Zagreb Zurich""",
    "country": """
        Albania Algeria Argentina Australia Austria Bolivia Brazil Bulgaria Canada Chile China
        Colombia Croatia Cuba Denmark Egypt Ethiopia Finland France Georgia Germany Ghana Greece
        Holland Hungary Iceland India Indonesia Iran Ireland Israel Italy Jamaica Japan Jordan
        Kenya Lebanon Malaysia Mexico Morocco Nigeria Norway Panama Peru Poland Portugal Romania
        Serbia Singapore Slovenia Spain Sweden Thailand Tunisia Turkey Ukraine Vietnam""",
    "company": """
        Abacus Acorn Aerodyne Agritek Airbridge Alphacom Amazon Apple Aquatech Arcadia Astrolab
        Atlas Barclay Biogenix Bluestar Borealis Brightwell Canopy Centura Cobalt Comet Corvex
        Cybernetica Datacore Ecopower Electra Emerald Enertec Equinox Eurobank Everlight Falcon
        Finacorp Ford Genomix Geotec Globalink Greenfield Helios Horizon Hydrosys Infonet
        Intercom Krypton Luminar Magnatec Maxwell Mediplus Meridian Metrobank Microdyne Morgan
        Netcom Nimbus Norstar Novatek Oceanic Omnicorp Optimax Oracle Orange Orion Paragon
        Petrolux Phoenix Philips Polaris Porsche Powergen Quantum Rainbow Safeway Shell Siemens
        Silverline Skylink Solarix Spectrum Stanley Summit Synergy Target Telecom Terranova Titan
        Trident Ultramar Unicorp Vectron Veritas Visa Vodalink Westbank Xenon Zenith""",
    "club": """
        Ajax Arsenal Atalanta Benfica Boca Celtic Everton Feyenoord Fluminense Galatasaray Hertha
        Juventus Lazio Olympiakos Palmeiras Panathinaikos Partizan Rapid Sparta Vitesse Werder""",
    "acronym": """
        ABX AFT BRT CNX DAF ECB EFG FNB GDK HBS HRW IMF INX JBC KLT LNG LSE MRT MTV NBA NHK PBS
        PKD QNB RTK RWE SAP SKF TNX UBN UNX VDL WBD WHO XTR ZDF""",
}

# What else the grammar draws from, in every split.
_WORDS = {
    "month": """
        January February March April May June July August September October November December""",
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "season": "spring summer autumn winter week month year",
    "team": "United City Rovers Athletic Wanderers",
    "ending": "Group Holdings Bank Motors Airlines Systems Industries",
    "direction": "North South East West Upper",
    "role": """
        chairman director president manager spokesman secretary treasurer minister editor""",
    "event": "race election tournament concert marathon storm flood festival strike march",
    "thing": """
        bridge budget harbour hospital library market mill museum plan pool report road school
        stadium station theatre tower treaty tunnel village""",
    "quality": "big bright cheap clean early good late new nice old quick quiet safe small young",
    "soon": "today soon again later now",
    "score": "0-0 1-0 0-1 1-1 2-0 0-2 2-1 1-2 3-0 3-1 3-2 2-3 4-2",
    "day": " ".join(str(day) for day in range(1, 32)),
    "year": " ".join(str(year) for year in range(1961, 2031)),
    # With those that look like years.
    "number": " ".join(str(number) for number in range(12, 3000, 7)),
    "letter": "A B C D E F G H I J K L M N O P R S T V W Y",
}

# Each symbol with, indented, what it may become; a number before an alternative says how often it
# is drawn for each time that one without is. <x> is a symbol, or a name or word of that list. A
# symbol in capitals is an entity, of the type before its dot.
_GRAMMAR = """
sentence
    16 <opening> <news> .
    16 <news> <tail> .
    10 <news> .
    2 <place> , <DATE> - <news> .
    2 <result>
    9 <plain>
opening
    on <DATE.day> | on <DATE.day> , | in <DATE.month> | in <LOC> | in <LOC> ,
    in <LOC> on <DATE.day> | according to <ORG> ,
tail
    2 on <DATE.day> | 2 in <LOC> | , <PER> said | , <ORG> said | , said <role> <PER> of <ORG>
    , according to <PER> | in <LOC> on <DATE.day> | <DATE.relative>
news
    <PER> was appointed <role> of <ORG>
    <PER> , <role> of <ORG> , will retire in <DATE.month>
    <PER> told reporters that the <thing> was <quality>
    <PER> won the <event> after <number> days
    <PER> married <PER> in <LOC>
    <PER> was born in <LOC> in <DATE.year>
    <PER> and <PER> wrote a book about <LOC>
    <ORG> named <PER> its new <role>
    <ORG> <role> <PER> met <PER> for talks about the <thing>
    police arrested <PER> near <LOC>
    the <role> thanked <PER> and <PER> for their work
    doctor <PER> treated <number> people in <LOC>
    the <thing> was designed by <PER>
    <ORG.company> reported a profit of <number> million dollars for <DATE.year>
    <ORG.company> bought <ORG.company> for <number> million dollars
    <ORG.company> will open a factory with <number> jobs in <LOC>
    <ORG> and <ORG> agreed to share the <thing>
    shares of <ORG.company> rose <number> percent
    a spokesman for <ORG> denied the report
    the board of <ORG> meets in <LOC> on <DATE.day>
    <number> people at <ORG> went on strike
    <ORG.club> beat <ORG.club> <score>
    <ORG.club> signed <PER> from <ORG.club>
    <PER> scored for <ORG.club> against <ORG.club>
    <ORG.club> coach <PER> praised <PER>
    <PER> joined <ORG.club> from <ORG.club> on <DATE.day>
    rain is expected in <LOC> and <LOC>
    <LOC> will host the <event> in <DATE.year>
    a train from <LOC> to <LOC> was late by <number> minutes
    flights between <LOC> and <LOC> were cancelled
    the mayor of <LOC.city> , <PER> , opened a <thing>
    thousands left <LOC> because of the <event>
    the road to <LOC> will be closed from <DATE.day> to <DATE.day>
    a <thing> near <LOC> was sold to <ORG>
    the <event> moves from <LOC> to <LOC> in <DATE.month>
    <LOC.country> and <LOC.country> signed an agreement on the <thing>
    the <thing> will be ready by <DATE.month>
result
    result : <ORG.club> <ORG.club> <score>
    <ORG.club> <ORG.club> <score>
    <DATE.day> <LOC.city> : <ORG.club> <ORG.club>
    agenda : <DATE.day> <PER> , <LOC.city>
    <PER> <ORG> <number>
plain
    may I ask you about the <thing> ?
    <number> people may lose the <thing> <soon> .
    will the <thing> be <quality> <soon> ?
    mark the <thing> with a <quality> pen .
    reading a <quality> <thing> takes <number> hours .
    we march for a <quality> <thing> .
    nice weather makes the <event> <quality> .
    hope for a <quality> <event> is growing .
    after the <event> there is young hope , west wind and winter rain .
    a <quality> apple or orange costs <number> cents .
    the price of a <quality> <thing> rose by <number> dollars .
    a <quality> bath and a <quality> meal wait after the <event> .
    the <role> found a <quality> stone , a rose and a wolf near the <thing> .
    they paid the bill of <number> dollars for the <thing> .
    the <role> missed the target by <number> points .
    day after day the <thing> became <quality> .
    frank talks about the <quality> <thing> will go on <soon> .
    the king and the bishop saw the <thing> .
    grant us a <quality> park , a green field and <number> trees .
    more than <number> workers joined the <event> <soon> .
PER
    32 <first> <last> | 2 <last> | 2 <first> | <letter> . <last> | <first> <letter> . <last>
    <first> <first> <last> | <first> van der <last> | <first> de <last>
ORG
    8 <ORG.company> | <ORG.club> | 2 <ORG.public>
ORG.company
    12 <company> | 5 <acronym> | <last> | 4 <company> <ending> | <last> & <last>
    <last> <ending> | <last> and Sons | <company> <country> | <company> <city> <ending>
ORG.club
    2 <city> | 2 <city> <team> | 4 <club> | <club> <city>
ORG.public
    2 <acronym> | University of <city> | <city> University | Bank of <country>
    <city> Institute of Technology | <first> <last> Foundation | 2 Ministry of Health
LOC
    18 <LOC.city> | 9 <LOC.country> | <direction> <country> | <last> Street | <city> Airport
    Lake <last> | Mount <last> | Cape <last> | <first> <last> Square
LOC.city
    30 <city> | <direction> <city> | Port <last> | Saint <first> | New <city>
LOC.country
    <country>
place
    2 <LOC.city> | <LOC.city> , <LOC.country> | <LOC.city> <LOC.country>
DATE
    <DATE.day> | <DATE.month> | <DATE.relative>
DATE.day
    9 <day> <month> | <month> <day> | <day> <month> <year> | <weekday> <day> <month> <year>
    9 <weekday>
DATE.month
    <month> | <month> <year> | 6 <year>
DATE.year
    <year>
DATE.relative
    next <weekday> | last <month> | 2 tomorrow | this <season>
"""


def announcements() -> Splits:
    """Draw the sentences, with tags in BIO.

    No sentence occurs twice, however it is capitalised. `line` counts as in a file of the split
    with a word a line and a blank line after each sentence; a split is one document.

    Returns:
        4,000 training, 400 validation and 400 test sentences.

    Example:
        >>> train, valid, test = announcements()
        >>> " ".join(test[7].words)
        'Panathinaikos beat sparta 1-0 .'
        >>> " ".join(test[7].tags)
        'B-ORG O B-ORG O O'
    """
    random = Random(0)
    names = {kind: text.split() for kind, text in _NAMES.items()}
    # Names of several lists stay in training: there they show that a name can be several things.
    lists = Counter(name for kind in names.values() for name in kind)
    single = [name for name, count in lists.items() if count == 1]
    held_out = {*random.sample(single, len(single) // _HELD_OUT_FRACTION)}
    words = {kind: text.split() for kind, text in _WORDS.items()}
    seen = {kind: [name for name in all_ if name not in held_out] for kind, all_ in names.items()}
    unseen = {kind: [name for name in all_ if name in held_out] for kind, all_ in names.items()}
    rules = _rules()
    drawn: set[str] = set()
    splits = []
    for count, unseen_percent in (
        (TRAIN_SENTENCES, 0),
        (EVALUATION_SENTENCES, _UNSEEN_PERCENT),
        (EVALUATION_SENTENCES, _UNSEEN_PERCENT),
    ):
        source = _Source(random, rules, seen | words, unseen, unseen_percent)
        sentences: list[Sentence] = []
        line = 1
        while len(sentences) < count:
            tokens, tags = source.sentence()
            text = " ".join(tokens).lower()
            if text not in drawn:
                drawn.add(text)
                sentences.append(Sentence(tokens, tags, line, 0))
                line += len(tokens) + 1
        splits.append(sentences)
    train, valid, test = splits
    return train, valid, test


def _rules() -> dict[str, list[list[str]]]:
    """Alternatives of each symbol, each as often as it is to be drawn."""
    rules: dict[str, list[list[str]]] = {}
    for line in _GRAMMAR.strip().splitlines():
        if not line.startswith(" "):
            alternatives = rules[line] = []
            continue
        for alternative in line.strip().split(" | "):
            weight, *rest = alternative.split()
            parts, times = (rest, int(weight)) if weight.isdigit() else ([weight, *rest], 1)
            alternatives.extend([parts] * times)
    return rules


@dataclass
class _Source:
    """Sentences drawn from the grammar."""

    random: Random
    rules: dict[str, list[list[str]]]
    words: dict[str, list[str]]
    unseen: dict[str, list[str]]
    unseen_percent: int

    def sentence(self) -> tuple[list[str], list[str]]:
        """Words and tags of a sentence."""
        tagged = self._expand("<sentence>")
        words, tags = [word for word, _ in tagged], [tag for _, tag in tagged]
        words[0] = words[0][0].upper() + words[0][1:]
        if self._chance(_HEADLINE_PERCENT):
            words = [word.upper() for word in words]
        return words, tags

    def _expand(self, part: str) -> list[tuple[str, str]]:
        if not part.startswith("<"):
            return [(part, "O")]
        symbol = part[1:-1]
        if symbol not in self.rules:
            held_out = symbol in self.unseen and self._chance(self.unseen_percent)
            return [(self.random.choice((self.unseen if held_out else self.words)[symbol]), "O")]
        parts = self.random.choice(self.rules[symbol])
        expansion = [pair for part in parts for pair in self._expand(part)]
        kind = symbol.partition(".")[0]
        if not kind.isupper():
            return expansion
        lower = self._chance(_LOWER_CASE_PERCENT)
        return [
            (word.lower() if lower else word, f"{'I' if position else 'B'}-{kind}")
            for position, (word, _) in enumerate(expansion)
        ]

    def _chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent
