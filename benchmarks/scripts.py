"""Texts in many scripts, for comparing tokenizers: languages, code, numbers, blanks, emoji."""

from __future__ import annotations

from random import Random
from typing import Final

LANGUAGES: Final = """\
The moon is full tonight, and the sea lies still; who would want to sleep?
Heute Nacht ist Vollmond, und das Meer liegt still - wer möchte da schlafen? Größe: 12 €.
Cette nuit, c'est la pleine lune ; la mer est calme. Où dort l'été, là-bas, à Noël ?
¡Esta noche hay luna llena! ¿Quién querría dormir, señor? El niño soñó con el mar.
Hoje à noite há lua cheia, e o mar está quieto. Não é verdade, avó? Coração, pão.
Dziś w nocy jest pełnia księżyca, a morze śpi. Żółć, źdźbło, gęś, ćma, łódź.
Dnes v noci je úplněk a moře je klidné. Příliš žluťoučký kůň úpěl ďábelské ódy.
Bu gece dolunay var ve deniz sakin. Iğdır'ın ılık rüzgârı, şişli çöl, İstanbul.
Đêm nay trăng tròn, và biển lặng. Ai lại muốn ngủ? Nước Việt Nam, phở, người ơi.
Í nótt er fullt tungl og sjórinn er lygn. Þórður á Æðey ræðir við fólkið.
Ma éjjel telihold van, és csendes a tenger. Árvíztűrő tükörfúrógép, őszi szőlő.
Alẹ́ yìí òṣùpá kún, òkun sì dákẹ́. Ta ni yóò fẹ́ sùn?
Απόψε το φεγγάρι είναι γεμάτο και η θάλασσα ήσυχη. Ποιος θα ήθελε να κοιμηθεί; ᾧ ἀνήρ.
Сегодня ночью полнолуние, и море спокойно. Кто захочет спать? Съешь ещё этих булок.
Сьогодні вночі повний місяць, і море тихе. Ґанок, їжак, об'єкт, щастя.
Бүгін түнде ай толық, теңіз тыныш. Әже, ғалым, қала, өзен, ұл, үй, һәм, і.
Այս գիշեր լուսինը լիքն է, և ծովը հանդարտ է։ Ո՞վ կուզենար քնել։
ამაღამ სავსე მთვარეა და ზღვა წყნარია. ვის უნდა ძილი?
הלילה הירח מלא והים שקט. מי ירצה לישון? שָׁלוֹם עַל כֻּלָּם.
القمر بدر الليلة والبحر هادئ. من يريد أن ينام؟ السَّلامُ عَلَيْكُم ٠١٢٣
امشب ماه کامل است و دریا آرام. چه کسی می‌خواهد بخوابد؟ گچ پژ ۴۵۶
آج رات چاند پورا ہے اور سمندر پرسکون ہے۔ کون سونا چاہے گا؟
आज रात पूरा चाँद है और समुद्र शांत है। कौन सोना चाहेगा? क्षत्रिय ज्ञान ०१२
আজ রাতে পূর্ণিমা, আর সমুদ্র শান্ত। কে ঘুমাতে চাইবে? ৪৫৬
ਅੱਜ ਰਾਤ ਪੂਰਾ ਚੰਦ ਹੈ ਅਤੇ ਸਮੁੰਦਰ ਸ਼ਾਂਤ ਹੈ।
આજે રાત્રે પૂનમ છે અને દરિયો શાંત છે.
ଆଜି ରାତିରେ ପୂର୍ଣ୍ଣିମା, ସମୁଦ୍ର ଶାନ୍ତ।
இன்றிரவு முழு நிலவு, கடல் அமைதியாக இருக்கிறது. யார் தூங்க விரும்புவார்?
ఈ రాత్రి పున్నమి, సముద్రం ప్రశాంతంగా ఉంది.
ಇಂದು ರಾತ್ರಿ ಹುಣ್ಣಿಮೆ, ಸಮುದ್ರ ಶಾಂತವಾಗಿದೆ.
ഇന്ന് രാത്രി പൗർണ്ണമിയാണ്, കടൽ ശാന്തമാണ്.
අද රෑ පුර හඳ, මුහුද නිසලයි.
คืนนี้พระจันทร์เต็มดวง ทะเลสงบ ใครจะอยากนอน ๑๒๓
ຄືນນີ້ເດືອນເພັງ ທະເລສະຫງົບ.
དེ་རིང་ཟླ་བ་ཉ་གང་ཡིན། རྒྱ་མཚོ་ཞི་བ་འདུག
ဒီည လပြည့်ညဖြစ်ပြီး ပင်လယ် ငြိမ်သက်နေသည်။
យប់នេះព្រះចន្ទពេញវង់ ហើយសមុទ្រស្ងប់។
ዛሬ ሌሊት ጨረቃ ሙሉ ናት፤ ባሕሩም ጸጥ ብሏል።
今晚月亮很圆,大海很平静。谁会想睡觉呢?我们说:“好!”
今晚月亮很圓,大海很平靜。誰會想睡覺呢?龍、鬱、𠮷、㐂。
今夜は満月で、海は静かです。誰が眠りたいでしょうか?「カタカナ」とﾊﾝｶｸ。
오늘 밤은 보름달이고 바다는 고요합니다. 누가 자고 싶겠어요? ㅋㅋㅋ 각
ᎪᎯ ᏒᎯ ᏅᏙ ᎧᎵᎢ. ᐅᓐᓄᖅ ᑕᖅᑭᖅ. ᠰᠠᠷᠠ ᠳᠦᠭᠦᠷᠡᠩ. ⲡⲓⲓⲟϩ ⵜⵉⵣⵉⵔⵉ ߞߊߙߏ
""".splitlines()

OTHERS: Final = (
    "class A(B[int]):\n    def f(self, x_1: int = 0x1F) -> dict[str, int]:\n\tif x >= 10: # half"
    "\n            return {'a': x // 2, \"b\": -1.5e-10}\n\n\n\tpass\n",
    "const f = async (x) => { await g(`${x}`); };\r\n\r\n/* C */ int main(void) { return 0; }\r\n",
    "SELECT a.id, COUNT(*) FROM t WHERE b <> 'x''y' GROUP BY 1; -- ;;; ((()))\n<!-- <b>&</b> -->",
    "3.14159265358979 2,718,281,828 0000012345 1e-10 2026-11-23T20:37:35Z 10  20\n½ ² ①②③ １２",
    "$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$ ∀x∈ℝ: x²≥0 ⇒ ∑ᵢ xᵢ ≠ ∅ 𝔸𝒷𝖈",
    "😀👩‍👩‍👧‍👦👍🏽🇩🇪❤️‍🔥 ☃︎☃️ e\u0301 n\u0303 ﬁn ﷽ Ǆ ß ẞ İ ı \u1e9e ￼ \ufffd",
    "  leading,  two   three    four     five trailing   \n\n\n\t\t tabs\t\n \n  \n",
    "\u200b\u200e\u202e\ufeff\u00a0\u3000\u2028\u2029\u00ad\u2060 blanks that are none",
    "we'll We'LL they'd I'm O'Neil's ''' \"\" `` -- --- ... !!! ?!? #tag @name a_b c-d e/f g\\h",
    "<|im_end|>\n<|im_start|>system\n</s><eos><end_of_turn><|eot_id|><0x41><unk>[INST]",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + "ab" * 30 + "=" * 70 + "\n" * 12 + " " * 30 + ".",
)

ALL: Final = (*LANGUAGES, *OTHERS)


def mixed(count: int, seed: int = 0) -> list[str]:
    """Texts that are put together of parts of all of these."""
    rng = Random(seed)
    made = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 6)):
            text = rng.choice(ALL)
            start = rng.randrange(len(text))
            parts.append(text[start : start + rng.randint(1, 60)])
        made.append(rng.choice(["", " ", "\n"]).join(parts))
    return made
