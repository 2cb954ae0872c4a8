"""Answers said in the languages of 27 scripts and spellings, and text that does not say them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One answer, how it is said, and a text that is about something else."""

    name: str
    answer: str
    said: tuple[str, ...]
    """Each tells the answer, with what the language writes onto it."""
    unrelated: str


LANGUAGES = (
    Language("English", "Reading", ("She lives in {}.", "{}'s mayor"),
             "A ready reader spreads bread."),
    Language("Polish", "Łódź", ("Mara mieszka w mieście {}.",),
             "Stara szkoła stoi obok rzeki."),
    Language("Danish", "Århus", ("Hun bor i {}.",), "Den gamle skole ligger ved åen."),
    Language("Turkish", "Diyarbakır", ("Mara {}'da yaşıyor.", "{}’ya gitti"),
             "Eski okul ırmağın yanında."),
    Language("Vietnamese", "Đà Nẵng", ("Cô ấy sống ở {}.",),
             "Trường học cũ nằm cạnh sông."),
    Language("French", "Italie", ("Elle vient d'{}.", "Elle aime l’{}."),
             "La vieille école est au bord."),
    Language("Korean", "서울", ("마라는 {}에 삽니다.", "{}에서는 그렇다", "{}입니다"),
             "오래된 학교는 강 옆에 있습니다."),
    Language("Chinese", "北京", ("玛拉住在{}市。", "是{}。"), "老学校在河边,背景很美。"),
    Language("Japanese", "横浜", ("マラは{}に住んでいます。",), "古い学校は川のそばにあります。"),
    Language("Hiragana", "さくら", ("なまえは{}です。",), "ふるいがっこうはかわのそばです。"),
    Language("Katakana", "ロンドン", ("マラは{}に住む。",), "トロンやドロンコのテレビ。"),
    Language("Thai", "เชียงใหม่", ("มาราอยู่ที่{}ครับ",), "โรงเรียนเก่าอยู่ริมแม่น้ำ"),
    Language("Lao", "ວຽງຈັນ", ("ມາລາຢູ່{}ແລ້ວ",), "ໂຮງຮຽນເກົ່າຢູ່ຂ້າງແມ່ນ້ຳ"),
    Language("Khmer", "ភ្នំពេញ", ("ម៉ារ៉ារស់នៅ{}ហើយ",), "សាលាចាស់នៅក្បែរទន្លេ"),
    Language("Burmese", "ရန်ကုန်", ("မာရာသည်{}တွင်နေသည်",),
             "ကျောင်းဟောင်းသည်မြစ်ဘေးမှာရှိသည်"),
    Language("Arabic", "القاهرة", ("تسكن مارا ب{}.", "و{} كبيرة", "في {}"),
             "المدرسة القديمة قرب النهر."),
    Language("Persian", "تهران", ("مارا در {} است", "{}\u200cها"),
             "مدرسه قدیمی کنار رودخانه است"),
    Language("Hebrew", "ירושלים", ("מרה גרה ב{}.", "ומ{} באה"), "בית הספר הישן ליד הנהר."),
    Language("Russian", "Лондон", ("Мара живёт в {}е.", "Это {}."),
             "Старая школа стоит у реки."),
    Language("Greek", "Αθήνα", ("Η Μάρα ζει στην {}.", "της {}ς"),
             "Το παλιό σχολείο είναι κοντά."),
    Language("Armenian", "Երևան", ("Մարան ապրում է {}ում։",), "Հին դպրոցը գետի մոտ է։"),
    Language("Georgian", "თბილისი", ("მარა ცხოვრობს {}.",),
             "ძველი სკოლა მდინარესთან არის."),
    Language("Amharic", "ባሕር ዳር", ("ማራ በ{} ትኖራለች።",), "አሮጌው ትምህርት ቤት በወንዙ አጠገብ ነው።"),
    Language("Hindi", "दिल्ली", ("मारा {} में रहती है।",),
             "पुराना विद्यालय नदी के पास है।"),
    Language("Bengali", "ঢাকা", ("মারা {}য় থাকে।", "{}র পথ"), "পুরানো স্কুল নদীর পাশে।"),
    Language("Gujarati", "સુરત", ("મારા {}માં રહે છે.",), "જૂની શાળા નદી પાસે છે."),
    Language("Punjabi", "ਅੰਮ੍ਰਿਤਸਰ", ("ਮਾਰਾ {} ਵਿੱਚ ਰਹਿੰਦੀ ਹੈ।",),
             "ਪੁਰਾਣਾ ਸਕੂਲ ਨਦੀ ਦੇ ਕੋਲ ਹੈ।"),
    Language("Tamil", "மதுரை", ("மாரா {}யில் வசிக்கிறாள்.",),
             "பழைய பள்ளி ஆற்றின் அருகில் உள்ளது."),
    Language("Telugu", "విజయవాడ", ("మారా {}లో ఉంటుంది.",), "పాత పాఠశాల నది పక్కన ఉంది."),
    Language("Kannada", "ಮೈಸೂರು", ("ಮಾರಾ {} ನಗರ",), "ಹಳೆಯ ಶಾಲೆ ನದಿಯ ಬಳಿ ಇದೆ."),
    Language("Malayalam", "കൊച്ചി", ("മാര {}യിൽ താമസിക്കുന്നു.",),
             "പഴയ സ്കൂൾ പുഴയുടെ അടുത്താണ്."),
    Language("Sinhala", "කොළඹ", ("මාරා {} නගරයේ",), "පරණ පාසල ගඟ අසල ඇත."),
    Language("Tibetan", "ལྷ་ས", ("མ་ར་ {} ལ་སྡོད།",),
             "སློབ་གྲྭ་རྙིང་པ་གཙང་པོའི་འགྲམ་ན་ཡོད།"),
    Language("Mongolian", "ᠬᠣᠲᠠ", ("ᠮᠠᠷᠠ {} ᠳᠤ",), "ᠰᠤᠷᠭᠠᠭᠤᠯᠢ ᠭᠣᠣᠯ"),
    Language("Cherokee", "ᏓᎵᏆ", ("ᎹᎳ {} ᎨᏎ",), "ᏧᏂᏲᎰ ᎠᏓᏁᎸ"),
    Language("Digits", "555-0199", ("Call {} now.", "電話{}です"),
             "In 1984 some 12,345 came to room 5550."),
)  # fmt: skip
